"""Time several ways of doing a thing in turn, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def stopwatch(work: Callable[[], object], device: str) -> Callable[[], float]:
    """Return a function that does `work` once and returns its seconds; on a GPU, until all its kernels are done."""

    def run() -> float:
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        return time.perf_counter() - start

    return run


def wait_for(device: str) -> None:
    """Wait until `device` has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interleave(ways: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int) -> dict[str, float]:
    """Call all ways in turn, `warmup` rounds uncounted, then `rounds` rounds.

    Args:
        ways: Name -> function that does one piece of work and returns its seconds.
    Returns:
        Name -> median seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        for name, way in ways.items():
            taken = way()
            if turn >= warmup:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}

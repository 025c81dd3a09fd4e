"""What an answer took: time per phase, tokens, and what the cache did."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# In this order; what a caller measured itself (preprocessing, detection) comes with its own figure.
PHASES = ("preprocess", "detect", "look_up", "vit", "projector", "fusion", "prefill", "decode", "store")
BEFORE_FIRST_ID = PHASES[: PHASES.index("decode")]


class PhaseClock:
    """Seconds per phase. A phase inside another stops the outer one's clock.

    Args:
        device: On a GPU each change of phase waits for what was started, so that a phase pays for its own work.
        measured: Phase -> seconds that the caller has measured.
    """

    def __init__(self, device: torch.device, measured: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.seconds.update(measured or {})
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as that of a phase."""
        self._start(name)
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def modules(self, phases: Mapping[str, Iterable[nn.Module | None]]) -> Iterator[None]:
        """Within the block, count the calls of some modules as phases of their own."""
        handles = []
        for name, modules in phases.items():
            for module in {module for module in modules if module is not None}:
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._start(name)))
                handles.append(module.register_forward_hook(lambda *_: self._stop(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def switch(self, name: str) -> None:
        """Go on with another phase in the present block."""
        self._charge()
        self._running[-1] = name

    @property
    def first_id_s(self) -> float:
        """Seconds until the first token of the answer was known."""
        return sum(self.seconds[name] for name in BEFORE_FIRST_ID)

    def _start(self, name: str) -> None:
        self._charge()
        self._running.append(name)

    def _stop(self) -> None:
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def write_trace(clock: PhaseClock, **facts: Any) -> dict[str, Any]:
    """Return a trace in JSON's types.

    Args:
        clock: Of the answer.
        facts: Any of the fields below.
    Returns:
        `n_bg`, `n_obj`: background and object tokens that the language model read, ring patches counted twice. `hit`: `kv`,
        `tokens` or "" (none). `miss`: why there was none; "" also if the cache was not asked. `tier`, `entry`: of the hit.
        `exact`: False for an answer from a similar background, `drift` grey levels away. `flops_saved`. `seconds`: per
        phase, `ttft_s`: until the first token; those of a batch are the whole batch's.
    """
    blank: dict[str, Any] = {"n_bg": 0, "n_obj": 0, "hit": "", "miss": "", "tier": "", "exact": True, "entry": "", "drift": 0.0}
    blank["flops_saved"] = 0.0
    unknown = facts.keys() - blank.keys()
    if unknown:
        raise TypeError(f"a trace has no {', '.join(sorted(unknown))}")
    return blank | facts | {"seconds": dict(clock.seconds), "ttft_s": clock.first_id_s}

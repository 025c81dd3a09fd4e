"""Training step of the LaFTer family: what stages cost, and what a teacher that labels once saves.

The shipped trainers on one batch each, at random weights: views ready in memory, then labels, forward, losses, backward and
AdamW. All run in turn; ratios are those of the medians. Goals: Hybrid at most 1.03 times LaFTer (1.05 on a GPU), MultiLayer
with all stages training at most 1.05 times with LaFTer's 50 prompts in every stage and 0.90 times with its own 16, LaFTer with
cached labels at most 0.85 times LaFTer with the shared teacher, bf16 at least 1.5 times as fast as fp32 on a GPU.

    python -m benchmarks.lafter_step
    python -m benchmarks.lafter_step --model tiny12 --batch 50
    python -m benchmarks.lafter_step --device cuda --batch 50 --prec fp32 bf16
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.noise_runs import ARCHITECTURES, build_run, write_noise
from benchmarks.timing import interleave, stopwatch

LAFTER, SHARED, HYBRID = "LaFTer, labels cached", "LaFTer, shared teacher", "Hybrid, labels cached"
MULTI_16, MULTI_50 = "MultiLayer, 16 prompts per stage", "MultiLayer, 50 prompts per stage"

# Name in the table -> trainer and its settings; LaFTer and Hybrid have 50 prompts.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    LAFTER: ("LaFTer", {"TEACHER": "frozen"}),
    HYBRID: ("HybridCascadeLaFTer", {"TEACHER": "frozen"}),
    MULTI_16: ("MultiLayerLaFTer", {"TEACHER": "frozen", "PROMPT_TOKENS": 16, "PROGRESSIVE": False}),
    MULTI_50: ("MultiLayerLaFTer", {"TEACHER": "frozen", "PROMPT_TOKENS": 50, "PROGRESSIVE": False}),
    SHARED: ("LaFTer", {"TEACHER": "shared"}),
}


def build_steps(args: argparse.Namespace, prec: str, folder: Path) -> dict[str, Callable[[], float]]:
    """Return name -> function that runs one training step and returns its seconds."""
    steps = {}
    for name, (trainer, settings) in STEPS.items():
        run = build_run(
            trainer, args.model, folder, batch=args.batch, device=args.device, settings={**settings, "PREC": prec}
        )
        batch = next(iter(run.train_loader_x))
        steps[f"{name}, {prec}"] = stopwatch(functools.partial(run.forward_backward, batch), args.device)
    return steps


def print_ratios(medians: dict[str, float], prec: str, device: str) -> None:
    """Print the ratios of one precision beside their goals."""
    lafter, hybrid, shared = (medians[f"{name}, {prec}"] for name in (LAFTER, HYBRID, SHARED))
    print(f"{prec}: Hybrid / LaFTer {hybrid / lafter:.3f} (goal at most {1.03 if device == 'cpu' else 1.05})")
    for name, goal in ((MULTI_16, 0.90), (MULTI_50, 1.05)):
        print(f"{prec}: {name} / LaFTer {medians[f'{name}, {prec}'] / lafter:.3f} (goal at most {goal:.2f})")
    print(f"{prec}: cached / shared {lafter / shared:.3f} (goal at most 0.85)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(ARCHITECTURES), default="ViT-B/32")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--prec", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each kind before those")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_noise(folder, batch=args.batch)
        steps = {}
        for prec in args.prec:
            steps |= build_steps(args, prec, folder)
        medians = interleave(steps, rounds=args.rounds, warmup=args.warmup)
    print(f"{args.model}, batch {args.batch}, {torch.get_num_threads()} threads, {args.device}, {args.rounds} rounds")
    for step, value in medians.items():
        print(f"  {step:<38} {1000 * value:9.1f} ms")
    for prec in args.prec:
        print_ratios(medians, prec, args.device)
    if len(args.prec) == 2:
        print(f"LaFTer, fp32 / bf16 {medians[f'{LAFTER}, fp32'] / medians[f'{LAFTER}, bf16']:.2f}")


if __name__ == "__main__":
    main()

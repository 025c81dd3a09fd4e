"""Cost of the training loop itself, bundled engine against upstream Dassl: `python benchmarks/engine_loop.py --upstream DIR`.

`TrainerX` runs batches that do no work, so that time and memory are the loop's own: fetching, meters, log lines, scalars.
Each measurement is a process of its own, which reports its fastest epoch, since a busy machine only ever adds time; the
engines take turns, and the medians over the processes are compared. The contract is a ratio of at most 1.05 for both
time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("bundled", "upstream")
LIMIT = 1.05
EPOCHS = 10  # per process


def measure(n_batches: int) -> dict[str, float]:
    """Time epochs of no-op batches on the engine that `DASSL_HOST` chooses.

    Returns:
        wall_s and cpu_s of the fastest `run_epoch`, peak_mib of the process.
    """
    import torch

    from dassl_host import ensure_dassl

    ensure_dassl()
    from dassl.config import get_cfg_default
    from dassl.engine import TrainerX
    from torch import nn

    class NoOp(TrainerX):
        def build_data_loader(self) -> None:
            items = [{"img": torch.zeros(1), "label": 0}] * n_batches
            self.train_loader_x = torch.utils.data.DataLoader(items, batch_size=1)
            self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains, self.lab2cname = 1, 0, {0: "none"}

        def build_model(self) -> None:
            self.model = nn.Linear(1, 1)
            self.register_model("model", self.model, torch.optim.SGD(self.model.parameters(), lr=0.1))

        def forward_backward(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
            return {"loss": 1.0, "acc": 50.0}

    cfg = get_cfg_default()
    cfg.USE_CUDA = False
    cfg.OPTIM.MAX_EPOCH = EPOCHS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        trainer = NoOp(cfg)
        trainer.before_train()
        times = [_time(trainer.run_epoch) for trainer.epoch in range(EPOCHS)]
        trainer.close_writer()
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is bytes on macOS, KiB on Linux
    wall, cpu = (min(column) for column in zip(*times))
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def _time(call: Callable[[], None]) -> tuple[float, float]:
    """Return wall-clock seconds and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_in_process(side: str, upstream: str, n_batches: int) -> dict[str, float]:
    """Run `measure` in a fresh process with one engine forced."""
    paths = [str(ROOT), *([upstream] if side == "upstream" else [])]
    env = {**os.environ, "DASSL_HOST": side, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", "--batches", str(n_batches)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{side} engine failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(upstream: str, n_batches: int, repeats: int) -> bool:
    """Print both engines' medians and their ratio; True if both ratios keep the limit."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            results[side].append(measure_in_process(side, upstream, n_batches))
    sys.stdout.write(
        f"{n_batches} no-op batches, fastest of {EPOCHS} epochs, median of {repeats} processes, {platform.machine()}, "
        f"Python {platform.python_version()}\n"
    )
    keeps_limit = True
    for name in ("wall_s", "cpu_s", "peak_mib"):
        median = {side: statistics.median(result[name] for result in results[side]) for side in SIDES}
        ratio = median["bundled"] / median["upstream"]
        keeps_limit &= ratio <= LIMIT
        spread = ", ".join(f"{result[name]:.3f}" for side in SIDES for result in results[side])
        sys.stdout.write(
            f"{name}: bundled {median['bundled']:.3f}, upstream {median['upstream']:.3f}, ratio {ratio:.3f} "
            f"(limit {LIMIT}; all: {spread})\n"
        )
    return keeps_limit


def main() -> None:
    """Parse the command line; exit 1 if a ratio exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", help="checkout of upstream Dassl 0.6.3")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        result = measure(args.batches)
        sys.stdout.write(f"\n{json.dumps(result)}\n")
    elif not args.upstream:
        parser.error("--upstream DIR is needed: a checkout of upstream Dassl 0.6.3")
    elif not compare(args.upstream, args.batches, args.repeats):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Train in pieces, as a command for either engine: `python runs_in_pieces.py IMAGES RESULT JOBS`.

JOBS is a JSON list of {"output": folder, "workers": n, "stops": [...]}. A job is one run per stop in the same folder: killed
before that epoch, or finished for -1. Every piece starts with another seed, as a new process would start with other draws.
RESULT gets a list of {"start", "lrs", "losses", "weights", "best", "steps"}, one per job, put together over its pieces.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from toy_world import NoisyToy, make_cfg, train_once

MAX_EPOCH = 6
COMPAT = Path(__file__).resolve().parents[2] / "trainers" / "compat.py"


@TRAINER_REGISTRY.register()
class CountingToy(NoisyToy):
    """A trainer with state of its own."""

    steps = 0

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        self.steps += 1
        return super().forward_backward(batch)

    def extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def repair_engine() -> None:
    """Apply compat by itself: the package around it imports every trainer."""
    spec = importlib.util.spec_from_file_location("compat", COMPAT)
    compat = importlib.util.module_from_spec(spec)
    sys.modules["compat"] = compat
    spec.loader.exec_module(compat)
    compat.apply()


def run_job(images: Path, output: str, workers: int, stops: list[int]) -> dict[str, Any]:
    """Run the pieces of one job and put their records together."""
    settings = {
        "DATALOADER.NUM_WORKERS": workers,
        "OPTIM.MAX_EPOCH": MAX_EPOCH,
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.WARMUP_TYPE": "constant",
        "OPTIM.MOMENTUM": 0.9,
        "TRAIN.CHECKPOINT_FREQ": 1,
        "TRAIN.PRINT_FREQ": 1000,
        "TEST.FINAL_MODEL": "best_val",
    }
    record: dict[str, Any] = {"start": None, "lrs": [], "losses": []}
    for piece, stop in enumerate(stops):
        cfg = make_cfg(images, Path(output), "CountingToy", settings)
        trainer = train_once(cfg, seed=1 + piece, stop_before_epoch=stop)
        if record["start"] is None:
            record["start"] = trainer.start_epoch
        record["lrs"] += trainer.lrs
        record["losses"] += trainer.losses
    latest = torch.load(Path(output, "toy", f"model.pth.tar-{trainer.epoch + (stop < 0)}"), weights_only=True)
    return {**record, "weights": latest["state_dict"], "best": float(trainer.best_result), "steps": trainer.steps}


if __name__ == "__main__":
    repair_engine()
    torch.save([run_job(Path(sys.argv[1]), **job) for job in json.loads(sys.argv[3])], sys.argv[2])

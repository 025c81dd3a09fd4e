"""A trainer that stands for the language systems: weighted losses, dropout, random views, resuming inside an epoch.

Works on both engines. Also run as a command in a fresh process: `python toy_talker.py RUN_FOLDER RESULT WORKERS [KILL_AT]...`
trains in pieces, killed at these batches of the run, and stores what the last piece did.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trainers
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from torch import Tensor, nn
from yacs.config import CfgNode

from trainers.base import ParameterGroup, TunedTrainer, WeightedLosses
from trainers.config import add_trainer_configs

N_TRAIN, N_TOKENS, WIDTH, N_WORDS = 22, 5, 8, 4
BATCH_SIZE = 2  # eleven batches per epoch


class Killed(Exception):
    """Stands for a run that ends from outside."""


class ToyQuestions(DatasetBase):
    """Items with empty files; the label is the item's number modulo the words."""

    def __init__(self, cfg: CfgNode) -> None:
        def items(split: str, count: int) -> list[Datum]:
            paths = [Path(cfg.DATASET.ROOT, f"{split}{number}.png") for number in range(count)]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            labels = [number % N_WORDS for number in range(count)]
            return [Datum(str(path), label, 0, f"word {label}") for path, label in zip(paths, labels)]

        super().__init__(train_x=items("train", N_TRAIN), val=items("val", 4), test=items("test", 4))


class ToyWrapper(DatasetWrapper):
    """Features of a question, `n_tokens` answer tokens, and noise from the sample's own and from the global generators."""

    rng: np.random.Generator | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        features = F.one_hot(torch.tensor(item.label), WIDTH).float()
        noise = 0.0
        if self.is_train:
            noise = self.rng.normal() + random.random() + np.random.rand() + torch.rand(()).item()
        row = {"img": features + 0.1 * noise, "label": item.label, "domain": 0, "impath": item.impath, "index": index}
        return row | {"n_tokens": 1 + index % N_TOKENS}


class ToyTalker(TunedTrainer):
    """Predicts the words that follow one another from the label on."""

    registered_name = "toy_talker"
    resumes_mid_epoch = True
    zero_window = 20
    kill_at = -1  # batch of the run, from 0

    def build_data_loader(self) -> None:
        self.dm = DataManager(self.cfg, custom_tfm_train=[], custom_tfm_test=[], dataset_wrapper=ToyWrapper)
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, None
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains = 1

    def build_model(self) -> None:
        layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(self.settings.DROPOUT), nn.Linear(16, N_WORDS))
        self.model = layers.to(self.device)
        self.register_trainables(self.model, [ParameterGroup("all", list(self.model.parameters()), 1.0, 0.01)])
        self.losses: list[float] = []
        self.seen: list[tuple[int, ...]] = []
        self.rates: list[float] = []

    def before_epoch(self) -> None:
        super().before_epoch()
        torch.rand(1), random.random(), np.random.rand()  # a resumed run may draw before its first batch

    def forward_backward(self, batch: dict | None) -> dict[str, float] | None:
        if batch is not None and self.epoch * self.num_batches + self.batch_idx == self.kill_at:
            raise Killed
        summary = super().forward_backward(batch)
        if batch is not None:
            self.losses.append(None if summary is None else summary["loss"])
            self.seen.append(tuple(batch["index"].tolist()))
        return summary

    def parse_batch_train(self, batch: dict) -> dict:
        self.rates.append(self.optim.param_groups[0]["lr"])
        return batch

    def compute_losses(self, batch: dict) -> WeightedLosses:
        logits = self.model(batch["img"])
        tokens = [
            F.cross_entropy(logits[row].expand(n, -1), (batch["label"][row] + torch.arange(n)) % N_WORDS, reduction="sum")
            for row, n in enumerate(batch["n_tokens"].tolist())
        ]
        return WeightedLosses({"answer": torch.stack(tokens).sum()}, batch["n_tokens"].sum())

    def model_inference(self, images: Tensor) -> Tensor:
        return self.model(images)


if "ToyTalker" not in TRAINER_REGISTRY.registered_names():
    TRAINER_REGISTRY.register(ToyTalker)
    DATASET_REGISTRY.register(ToyQuestions)


def make_cfg(output: Path, overrides: dict[str, Any] | None = None) -> CfgNode:
    """Return the config of two epochs on the CPU; a key that starts with "." is below the trainer's node."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    node = cfg.TRAINER.TOYTALKER = CfgNode()
    node.PREC, node.SCHEDULER, node.SCHEDULER_STEP, node.WARMUP_RATIO = "fp32", "warmup_cosine", "update", 0.1
    node.GRAD_ACCUM, node.MAX_GRAD_NORM, node.SAVE_LATEST_PER_EPOCH, node.DROPOUT = 2, 1.0, 2, 0.3
    settings = {
        "TRAINER.NAME": "ToyTalker",
        "DATASET.NAME": "ToyQuestions",
        "DATASET.ROOT": str(output.parent / "toy_questions"),
        "SEED": 1,
        "USE_CUDA": False,
        "OUTPUT_DIR": str(output),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": BATCH_SIZE,
        "DATALOADER.TEST.BATCH_SIZE": 4,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-2,
        "OPTIM.MAX_EPOCH": 2,
        "TRAIN.CHECKPOINT_FREQ": 1,
        "TEST.NO_TEST": True,
    }
    for key, value in (settings | (overrides or {})).items():
        cfg.merge_from_list([f"TRAINER.TOYTALKER{key}" if key.startswith(".") else key, value])
    cfg.freeze()
    return cfg


def build(cfg: CfgNode, seed: int = 1) -> ToyTalker:
    """Seed everything, as a run does, and build the trainer."""
    set_random_seed(seed)
    return build_trainer(cfg)


def train_in_pieces(cfg: CfgNode, kills: list[int]) -> list[ToyTalker]:
    """Train, killed at each of these batches of the run and resumed by a new trainer."""
    pieces = []
    for kill_at in [*kills, -1]:
        trainer = build(cfg)
        trainer.kill_at = kill_at
        try:
            trainer.train()
        except Killed:
            trainer.close_writer()
        pieces.append(trainer)
    return pieces


def kill(cfg: CfgNode, batch: int, seed: int = 1) -> ToyTalker:
    """Train until a batch of the run; return the trainer."""
    trainer = build(cfg, seed)
    trainer.kill_at = batch
    try:
        trainer.train()
    except Killed:
        trainer.close_writer()
        return trainer
    raise AssertionError(f"the run ended before batch {batch}")


def main(output: str, result: str, workers: str, *kills: str) -> None:
    """Train in pieces and store the record of the last piece."""
    cfg = make_cfg(Path(output), {"DATALOADER.NUM_WORKERS": int(workers)})
    last = train_in_pieces(cfg, [int(kill) for kill in kills])[-1]
    torch.save({"losses": last.losses, "seen": last.seen, "weights": last.model.state_dict()}, result)


if __name__ == "__main__":
    assert trainers.__all__
    main(*sys.argv[1:])

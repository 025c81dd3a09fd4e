"""A data set of 8 x 8 images in three colours and a trainer that draws from every generator; works on both engines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dassl_host import ensure_dassl

ensure_dassl()

from dassl.config import get_cfg_default  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum  # noqa: E402
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer  # noqa: E402
from dassl.metrics import compute_accuracy  # noqa: E402
from dassl.optim import build_lr_scheduler, build_optimizer  # noqa: E402
from dassl.utils import set_random_seed  # noqa: E402

CLASSNAMES = ("red", "green", "blue")
IMAGES_PER_CLASS = {"train": 4, "val": 2, "test": 2}
SIZE_PX = 8
N_PIXELS = 3 * SIZE_PX * SIZE_PX


def write_images(root: Path) -> Path:
    """Write noisy images of one dominant colour per class as <split>_<label>_<number>.png."""
    generator = np.random.default_rng(0)
    for split, count in IMAGES_PER_CLASS.items():
        for label in range(len(CLASSNAMES)):
            for number in range(count):
                pixels = generator.integers(0, 120, (12, 10, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(root / f"{split}_{label}_{number}.png")
    return root


@DATASET_REGISTRY.register()
class ToyColours(DatasetBase):
    """The images of `write_images`; val is left out under DATASET.VAL_PERCENT 0."""

    def __init__(self, cfg: Any) -> None:
        train, val, test = (self._read(cfg.DATASET.ROOT, split) for split in IMAGES_PER_CLASS)
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(
            train_x=train,
            train_u=test if cfg.DATASET.ALL_AS_UNLABELED else None,
            val=val if cfg.DATASET.VAL_PERCENT > 0 else None,
            test=test,
        )

    @staticmethod
    def _read(root: str, split: str) -> list[Datum]:
        paths = sorted(Path(root).glob(f"{split}_*.png"))
        labels = [int(path.stem.split("_")[1]) for path in paths]
        return [Datum(str(path), label, label % 2, CLASSNAMES[label]) for path, label in zip(paths, labels)]


@TRAINER_REGISTRY.register()
class NoisyToy(TrainerX):
    """A linear classifier whose loss depends on the Python, numpy and torch generators."""

    stop_before_epoch = -1  # a test sets it to kill the run there

    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(N_PIXELS, self.num_classes))
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("toy", self.model, self.optim, self.sched)
        self.losses: list[tuple[int, int, float]] = []
        self.lrs: list[tuple[int, float]] = []

    def before_epoch(self) -> None:
        if self.epoch == self.stop_before_epoch:
            raise KeyboardInterrupt
        self.lrs.append((self.epoch, self.get_current_lr()))

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label, _ = self.parse_batch_train(batch)
        noise = random.random() + np.random.rand() + torch.randn_like(image)
        logits = self.model(image + 0.1 * noise)
        loss = F.cross_entropy(logits, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.losses.append((self.epoch, self.batch_idx, loss.item()))
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}


def make_cfg(root: Path, output: Path, trainer: str, overrides: dict[str, Any]) -> Any:
    """Return a config of two epochs on the toy images, with `overrides` by dotted key."""
    settings = {
        "DATASET.NAME": "ToyColours",
        "DATASET.ROOT": str(root),
        "OUTPUT_DIR": str(output),
        "TRAINER.NAME": trainer,
        "USE_CUDA": False,
        "INPUT.SIZE": (SIZE_PX, SIZE_PX),
        "INPUT.TRANSFORMS": ("random_flip", "normalize"),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATALOADER.TEST.BATCH_SIZE": 4,
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.02,
        "OPTIM.MAX_EPOCH": 2,
        "OPTIM.LR_SCHEDULER": "cosine",
        "TRAIN.PRINT_FREQ": 1,
        **overrides,
    }
    cfg = get_cfg_default()
    cfg.merge_from_list([part for item in settings.items() for part in item])
    return cfg


def train_once(cfg: Any, *, seed: int = 1, stop_before_epoch: int = -1) -> TrainerX:
    """Build and train; a run stopped early leaves its checkpoints behind."""
    set_random_seed(seed)
    trainer = build_trainer(cfg)
    trainer.stop_before_epoch = stop_before_epoch
    try:
        trainer.train()
    except KeyboardInterrupt:
        trainer.close_writer()
    return trainer

"""The LaFTer family's shipped trainers on noise images with random weights, built up to their first step.

Time depends neither on weights nor on pixels. Only the source of both is replaced; text phase, teacher, student, losses and
optimizer are those of a run.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import trainers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum, DatasetBase
from dassl.utils import set_random_seed
from PIL import Image
from yacs.config import CfgNode

from clip_ext.loader import LoadedClip, build_clip
from trainers.config import add_trainer_configs
from trainers.lafter import LaFTer

ARCHITECTURES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu", "tiny12": "tiny12"}
CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@DATASET_REGISTRY.register()
class NoiseImages(DatasetBase):
    """The images of `DATASET.ROOT`, the last of them for the test."""

    def __init__(self, cfg: CfgNode) -> None:
        paths = sorted(Path(cfg.DATASET.ROOT).glob("*.png"))
        items = [
            Datum(impath=str(path), label=number % len(CLASSNAMES), classname=CLASSNAMES[number % len(CLASSNAMES)])
            for number, path in enumerate(paths)
        ]
        super().__init__(train_x=items[:-1], test=items[-1:])


def write_noise(folder: Path, *, batch: int) -> None:
    """Write the texts of the classes and small noise images: two batches, since a step that ends an epoch does more."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(2 * batch + 1):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:04d}.png")
    (folder / "texts.json").write_text(json.dumps({"zeroshot": "a {}.", "templates": ["a {}."]}), encoding="utf-8")


def build_run(
    trainer: str, model: str, folder: Path, *, batch: int, device: str, settings: Mapping[str, Any], config_file: str = ""
) -> LaFTer:
    """Build a trainer and run it up to the first step of its first epoch.

    Args:
        trainer: A name that `trainers` exports.
        model: A name in `ARCHITECTURES`; weights are random, equal for equal names.
        folder: Where `write_noise` wrote; the run's files go there too.
        batch: Images per step.
        device: `cpu` or `cuda`.
        settings: Keys below the trainer's node -> values, e.g. {"TEACHER": "frozen"}.
        config_file: YAML merged before the settings.
    """
    cfg = _make_cfg(trainer, model, folder, batch=batch, device=device, settings=settings, config_file=config_file)

    def load_backbone(self: LaFTer) -> LoadedClip:
        clip = build_clip(open_clip.get_model_config(ARCHITECTURES[model]), name=model)
        clip.model.to(self.device)
        return clip

    # The same name, because a trainer finds its config node by it.
    trainer_class = type(trainer, (getattr(trainers, trainer),), {"load_backbone": load_backbone})
    set_random_seed(cfg.SEED)
    with contextlib.redirect_stdout(io.StringIO()):
        run = trainer_class(cfg)
        run.before_train()
        run.epoch = run.start_epoch
        run.before_epoch()
    run.set_model_mode("train")
    return run


def _make_cfg(
    trainer: str, model: str, folder: Path, *, batch: int, device: str, settings: Mapping[str, Any], config_file: str
) -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    if config_file:
        cfg.merge_from_file(config_file)
    run_number = len(list(folder.glob("run_*")))
    node = f"TRAINER.{trainer.upper()}"
    values = {
        "TRAINER.NAME": trainer,
        "SEED": 1,
        "USE_CUDA": device.startswith("cuda"),
        "OUTPUT_DIR": str(folder / f"run_{run_number}"),
        "MODEL.BACKBONE.NAME": model,
        "DATASET.NAME": "NoiseImages",
        "DATASET.ROOT": str(folder / "images"),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
        "DATALOADER.TEST.BATCH_SIZE": batch,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 5e-4,
        "OPTIM.WEIGHT_DECAY": 0.01,
        "OPTIM.MAX_EPOCH": 50,
        f"{node}.TEXT.MODE": "cls_only",
        f"{node}.TEXT.EPOCHS": 1,
        f"{node}.TEXT.TEMPLATES": str(folder / "texts.json"),
        f"{node}.TEXT.CACHE_DIR": str(folder / "cache"),
        **{f"{node}.{key}": value for key, value in settings.items()},
    }
    cfg.merge_from_list([word for pair in values.items() for word in pair])
    cfg.freeze()
    return cfg

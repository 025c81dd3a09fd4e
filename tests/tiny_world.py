"""A world small enough for every test: a random 12-block CLIP of width 32 and a data set of eight coloured training images.

Language systems are asked about the same images (`tiny_questions`, `tiny_gated`), or caption them (`tiny_captions`). Also run
as a command in fresh processes: `python tiny_world.py [CONFIG_YAML RUN_FOLDER EPOCH OUT_FILE]...` rebuilds trainers, loads
their weights and stores their logits of the test images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from PIL import Image
from safetensors.torch import save_file
from yacs.config import CfgNode

import tiny_captions
import tiny_gated
import tiny_questions
import trainers
from clip_ext.loader import build_clip
from dassl_host import ensure_dassl
from trainers.base import CLIPTrainer
from trainers.config import add_trainer_configs
from trainers.run_folder import RunFolder

CLASSNAMES = ("red", "green", "blue")
SIZES = {"train": 8, "val": 3, "test": 6}
IMAGE_SIZE_PX = 32


def clip_config(*, width: int = 32, depth: int = 12, embed_dim: int = 24) -> dict:
    """Return open_clip's config of a tower with 16 patches and the word list of tiny12."""
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": IMAGE_SIZE_PX,
            "layers": depth,
            "width": width,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"context_length": 32, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 1},
    }


def write_world(folder: Path) -> Path:
    """Write images, texts and the weights of the tiny CLIP; return the folder."""
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        for number in range(size):
            label = number % len(CLASSNAMES)
            pixels = rng.integers(0, 120, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
            pixels[..., label] += 100
            path = folder / "colours" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    texts = {"zeroshot": "a photo of a {} thing.", "templates": ["a photo of a {} thing.", "a {} picture."], "text_epochs": 20}
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    write_clip(folder / "clip", clip_config())
    return folder


def write_clip(folder: Path, config: dict, seed: int = 0) -> str:
    """Write a random CLIP as a folder that `load_clip` reads; return its name for `MODEL.BACKBONE.NAME`."""
    folder.mkdir(parents=True)
    clip = build_clip(config, name="tiny", seed=seed)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
    state = {name: value.contiguous() for name, value in clip.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


class TinyColours(DatasetBase):
    """Eight training, three validation and six test images of three colours."""

    # Added to the training and validation labels: a label-free run must not notice.
    label_shift = 0

    def __init__(self, cfg: CfgNode) -> None:
        root = Path(cfg.DATASET.ROOT) / "colours"
        splits = {
            split: [
                Datum(
                    impath=str(root / split / f"{number}.png"),
                    label=(number + (0 if split == "test" else self.label_shift)) % len(CLASSNAMES),
                    classname=CLASSNAMES[(number + (0 if split == "test" else self.label_shift)) % len(CLASSNAMES)],
                )
                for number in range(size)
            ]
            for split, size in SIZES.items()
        }
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])


if "TinyColours" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyColours)


# Language systems have worlds of their own, which know their settings and what their answers begin with.
WORLDS = {"BgObjLLaVA": tiny_questions, "GatedBLIP2": tiny_gated, "ViECap": tiny_captions}


def make_cfg(world: Path, output: Path, trainer: str, overrides: dict[str, Any] | None = None) -> CfgNode:
    """Return the config of a short run on the CPU.

    Args:
        world: What `write_world` returned.
        output: Run folder.
        trainer: Registered name.
        overrides: Dotted keys -> values; a key that starts with "." is below the trainer's node.
    """
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    node = f"TRAINER.{trainer.upper()}"
    settings = {
        "TRAINER.NAME": trainer,
        "SEED": 1,
        "USE_CUDA": False,
        "OUTPUT_DIR": str(output),
        "DATASET.ROOT": str(world),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATALOADER.TEST.BATCH_SIZE": 5,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-3,
        "OPTIM.WEIGHT_DECAY": 0.01,
        "OPTIM.MAX_EPOCH": 2,
        "TRAIN.CHECKPOINT_FREQ": 1,
    }
    settings |= (WORLDS[trainer].settings_of if trainer in WORLDS else clip_settings)(world, output, node)
    for key, value in (overrides or {}).items():
        settings[f"{node}{key}" if key.startswith(".") else key] = value
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    cfg.freeze()
    return cfg


def clip_settings(world: Path, output: Path, node: str) -> dict[str, Any]:
    """Return what a short run of a CLIP trainer needs beside what all trainers share; see `tiny_questions.settings_of`."""
    settings = {
        "DATASET.NAME": "TinyColours",
        "MODEL.BACKBONE.NAME": f"local-dir:{world / 'clip'}",
        f"{node}.TEXT.TEMPLATES": str(world / "texts.json"),
        f"{node}.TEXT.MODE": "templates_only",
        f"{node}.TEXT.CACHE_DIR": str(output.parent / "cache"),
    }
    if node != "TRAINER.ZEROSHOTCLIP":
        settings |= {f"{node}.PROMPT_TOKENS": 3, f"{node}.WARMUP_EPOCHS": 1}
    if node == "TRAINER.MULTILAYERLAFTER":
        settings[f"{node}.PROGRESSIVE"] = False  # two epochs are too few for it
    return settings


def is_language_system(name: str) -> bool:
    """Whether a registered trainer answers or describes, instead of comparing images with class texts by a CLIP."""
    return not issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)


def build(cfg: CfgNode) -> Any:
    """Seed everything and build the trainer, as a run does."""
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def train_run(world: Path, folder: Path, trainer: str, overrides: dict[str, Any] | None = None) -> Any:
    """Train one epoch and leave the run folder that train.py leaves; return the trainer."""
    short = {"OPTIM.MAX_EPOCH": 1} | ({} if "WARMUP_EPOCHS" not in node_of(trainer) else {".WARMUP_EPOCHS": 0})
    cfg = make_cfg(world, folder, trainer, short | (overrides or {}))
    record = RunFolder(cfg, "train")
    record.start([], ensure_dassl())
    built = build(cfg)
    record.describe_data(built.dm.dataset)
    built.train()
    record.finish()
    return built


def node_of(trainer: str) -> CfgNode:
    """Return a trainer's node with its defaults."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    return cfg.TRAINER[trainer.upper()]


@torch.no_grad()
def test_logits(trainer: Any) -> torch.Tensor:
    """Return the logits of all test images, (N, C); of a language system those of the first token of every answer, (N, V)."""
    trainer.set_model_mode("eval")
    name = type(trainer).__name__
    if name in WORLDS:
        return WORLDS[name].first_logits(trainer)
    return torch.cat([trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader])


test_logits.__test__ = False  # a helper, whatever its name suggests to pytest


def main(config: str, run_folder: str, epoch: str, output: str) -> None:
    """Rebuild, load, and store the logits."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.merge_from_file(config)
    trainer = build(cfg)
    trainer.load_model(run_folder, epoch=int(epoch))
    save_file({"logits": test_logits(trainer).contiguous()}, output)


if __name__ == "__main__":
    assert trainers.__all__
    for first in range(1, len(sys.argv), 4):
        main(*sys.argv[first : first + 4])

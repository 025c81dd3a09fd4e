"""Captions of the pictures of the tiny world, and a random GPT-2 that knows their words: the world of ViECap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from yacs.config import CfgNode

COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "ring", "star")
SIZES = {"train": 8, "val": 3, "test": 6}


class Captioned(Datum):
    """An item with extras."""

    def __init__(self, extras: dict[str, Any], **fields: Any) -> None:
        super().__init__(**fields)
        self.extras = extras


class TinyCaptions(DatasetBase):
    """Two captions for each of eight training pictures, which are not opened, of three val and of six test pictures."""

    # What the extras of every item are changed by.
    changes: dict[str, Any] = {}

    def __init__(self, cfg: CfgNode) -> None:
        root = Path(cfg.DATASET.ROOT) / "colours"
        self.caption_report = ["tiny captions: nothing to report"]
        splits = {
            split: [self.describe(root / split / f"{number}.png", number, split) for number in range(size)]
            for split, size in SIZES.items()
        }
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])

    def describe(self, path: Path, number: int, split: str) -> Captioned:
        """Return a picture with its captions."""
        colour, shape, other = COLOURS[number % 3], SHAPES[number % 4], SHAPES[(number + 1) % 4]
        extras = {
            "captions": json.dumps([f"a {colour} {shape}", f"A {shape} beside a {other} and a {colour} wall."]),
            "entities": json.dumps([[shape], [shape, other, "wall"]]),
            "image_id": f"{split}-{number}",
            "split_name": split,
            "style": "",
        }
        return Captioned(extras | self.changes, impath=str(path), label=0, classname="caption")


if "TinyCaptions" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyCaptions)


def gpt2_of(world: Path) -> Path:
    """Return the folder of a random GPT-2 in the tiny world, written when it is asked for first."""
    from tiny_gpt2s import random_gpt2

    folder = world / "gpt2"
    if not folder.is_dir():
        model, tokenizer = random_gpt2()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def settings_of(world: Path, output: Path, node: str) -> dict[str, Any]:
    """Return what a short run needs beside what all trainers share; see `tiny_questions.settings_of`."""
    return {
        "DATASET.NAME": TinyCaptions.__name__,
        "MODEL.BACKBONE.NAME": f"local-dir:{world / 'clip'}",
        "TEST.EVALUATOR": "Captioning",
        f"{node}.LANGUAGE_MODEL": str(gpt2_of(world)),
        f"{node}.CLIP_PROJECT_LENGTH": 2,
        f"{node}.CONTINUOUS_PROMPT_LENGTH": 3,
        f"{node}.NUM_LAYERS": 1,
        f"{node}.NUM_HEADS": 2,
        f"{node}.MAX_NUM_OF_ENTITIES": 4,
        f"{node}.ENTITY_EXTRACTOR": "given",
        f"{node}.NAME_OF_OBJECTS_VOCABS": "corpus",
        f"{node}.NAME_OF_ENTITIES_TEXT": "mini_scenes",
        f"{node}.WARMUP_STEPS": 0,
        f"{node}.DECODE": "greedy",
        f"{node}.MAX_NEW_TOKENS": 6,
    }


@torch.no_grad()
def first_logits(trainer: Any) -> torch.Tensor:
    """Return the scores of the first token of the caption of every test picture, (N, V)."""
    from trainers.viecap.network.mapping import soft_input

    trainer.start_captions(trainer.test_loader, "test", greedy=True)
    prompts = [trainer.system.prompts.encode([SHAPES[number % 4]]) for number in range(SIZES["test"])]
    features = torch.cat([trainer.parse_batch_test(batch)[0].inputs for batch in trainer.test_loader]).float()
    with trainer.autocast():
        rows = [
            trainer.model.scores(trainer.model.hidden(trainer.model.prompt_embeds(soft_input(own[None]), [ids]))[:, -1])
            for own, ids in zip(features, prompts, strict=True)
        ]
    return torch.cat(rows).float()

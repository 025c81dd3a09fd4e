"""Questions about the pictures of the tiny world, and a random LLaVA that knows their words: the world of language systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from yacs.config import CfgNode

COLOURS = ("red", "green", "blue")
SIZES = {"train": 8, "val": 3, "test": 6}
BOX = [2.0, 2.0, 7.0, 7.0]  # of the one object in pictures of 32 px; moves down the diagonal


class Question(Datum):
    """An item with extras."""

    def __init__(self, extras: dict[str, Any], **fields: Any) -> None:
        super().__init__(**fields)
        self.extras = extras


class TinyQuestions(DatasetBase):
    """Eight training, three validation and six test questions of two types about pictures of three colours."""

    # What the extras of every item are changed by.
    changes: dict[str, Any] = {}

    def __init__(self, cfg: CfgNode) -> None:
        root = Path(cfg.DATASET.ROOT) / "colours"
        splits = {
            split: [self.ask(root / split / f"{number}.png", number, split) for number in range(size)]
            for split, size in SIZES.items()
        }
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])

    def ask(self, path: Path, number: int, split: str) -> Question:
        """Return a question about a picture."""
        kind = number % 2
        extras = {
            "question": ("what colour is the circle?", "how many objects are there?")[kind],
            "answers": json.dumps([(COLOURS[number % 3], "one two three".split()[number % 3])[kind]]),
            "boxes": json.dumps([[edge + 3 * number for edge in BOX]]),
            "question_id": f"{split}-{number}",
            "question_type": ("colour", "count")[kind],
            "style": "",
        }
        return Question(extras | self.changes, impath=str(path), label=kind, classname=extras["question_type"])


if "TinyQuestions" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyQuestions)


def llava_of(world: Path) -> Path:
    """Return the folder of a random LLaVA in the tiny world, written when it is asked for first."""
    from llava_folders import write_llava

    folder = world / "llava"
    return folder if folder.is_dir() else write_llava(folder, vision=(3, 32), llm=(2, 48))


def settings_of(world: Path, output: Path, node: str) -> dict[str, Any]:
    """Return what a short run of a language system needs beside what all trainers share.

    Args:
        world: Folder of the tiny world.
        output: Run folder.
        node: The trainer's config node.
    """
    return {
        "DATASET.NAME": TinyQuestions.__name__,
        "MODEL.BACKBONE.NAME": str(llava_of(world)),
        "TEST.EVALUATOR": "VQA",
        "OPTIM.WEIGHT_DECAY": 0.0,
        f"{node}.GEN.MAX_NEW_TOKENS": 3,
    }


def first_logits(trainer: Any) -> torch.Tensor:
    """Return the scores of the first token of every answer to the test questions, (N, V), computed in one pass each."""
    return torch.cat([_logits_of(trainer, trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader])


def _logits_of(trainer: Any, batch: Any) -> torch.Tensor:
    from trainers.bgobj_llava.model.encode import SplitBatch

    columns = [np.stack([getattr(split, name) for split in batch.splits]) for name in ("objects", "ring", "stock_order")]
    texts = [trainer.system.encoder.encode([(question, None)]) for question in batch.questions]
    with trainer.autocast():
        rows = trainer.model(batch.images, SplitBatch(*map(torch.from_numpy, columns)), texts)
    return torch.stack([own[-1].float() for own in rows])

"""A random BLIP-2 and a random style encoder, asked about the pictures of the tiny world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_questions
import torch


def blip2_of(world: Path) -> Path:
    """Return the folder of a random BLIP-2 in the tiny world, written when it is asked for first."""
    from tiny_blip2s import write_blip2

    folder = world / "blip2"
    return folder if folder.is_dir() else write_blip2(folder)


def settings_of(world: Path, output: Path, node: str) -> dict[str, Any]:
    """Return what a short run needs beside what all trainers share; see `tiny_questions.settings_of`."""
    return {
        "DATASET.NAME": tiny_questions.TinyQuestions.__name__,
        "MODEL.BACKBONE.NAME": str(blip2_of(world)),
        "TEST.EVALUATOR": "VQA",
        f"{node}.GRAD_ACCUM": 1,
        f"{node}.GATE.HIDDEN": 8,
        f"{node}.GATE.INIT_STD": 0.05,  # so that the trunk learns from the first update on, as tests of all trainers expect
        f"{node}.STYLE.ARCH": "efficientnet_tiny",
        f"{node}.STYLE.FALLBACK": "random",
        f"{node}.CACHE.DIR": str(output.parent / "cache"),
        f"{node}.GEN.MAX_NEW_TOKENS": 3,
    }


@torch.no_grad()
def first_logits(trainer: Any) -> torch.Tensor:
    """Return the scores of the first token of every answer to the test questions, (N, V), computed in one pass each."""
    from trainers.gated_blip2.prompts import collate

    trainer.fill_cache(trainer.test_loader)
    found, system = [], trainer.system
    for batch in trainer.test_loader:
        asked = trainer.parse_batch_test(batch)[0]
        texts = [system.encoder.encode(question) for question in asked.questions]
        text = collate(texts, pad_id=system.encoder.pad_id, side="left")
        found.append(system.model.logits(asked.rows.tokens, system.style_of(asked.rows, asked.labels), text)[:, -1].float())
    return torch.cat(found)

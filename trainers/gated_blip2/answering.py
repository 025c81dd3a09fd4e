"""Answers to batches of questions, as plain rows; and the same with something taken away, for the controls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers.gated_blip2.building import GatedSystem
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.generation import Generated, GenerateOptions
from trainers.gated_blip2.prompts import collate

DIGITS = 6  # of a probability


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked.

    Attributes:
        rows: Features of the pictures, on the device.
        labels: Styles of the data, (B,), -1 = unknown, on the device.
        questions: One each.
    """

    rows: Rows
    labels: Tensor
    questions: Sequence[str]

    def __len__(self) -> int:
        return len(self.questions)

    def only(self, numbers: Sequence[int]) -> Questions:
        """Return some of them."""
        rows = Rows(**{name: part[list(numbers)] for name, part in self.rows.parts().items()})
        return Questions(rows, self.labels[list(numbers)], [self.questions[number] for number in numbers])


class Answerer:
    """Answers questions while the model stays as it is.

    Args:
        system: In evaluation mode.
        node: `TRAINER.GATEDBLIP2`.
    """

    def __init__(self, system: GatedSystem, node: CfgNode) -> None:
        self._system = system
        self._options = GenerateOptions(node.GEN.NUM_BEAMS, node.GEN.MAX_NEW_TOKENS, node.GEN.LENGTH_PENALTY)
        encoder = system.towers.style_encoder
        self._style_names = () if encoder is None or encoder.class_names is None else encoder.class_names

    @torch.no_grad()
    def answer(self, asked: Questions, *, control: str = "") -> list[dict[str, Any]]:
        """Return one row per question: `answer`, `log_prob`, `truncated`, and what the style encoder saw.

        Args:
            asked: The questions.
            control: What is taken away: `no_style`, `no_image`, `ungated`; anything else takes nothing.
        """
        system = self._system
        texts = [system.encoder.encode(question) for question in asked.questions]
        text = collate(texts, pad_id=system.encoder.pad_id, side="left")
        style, rows = system.style_of(asked.rows, asked.labels), asked.rows
        if control == "no_style" and style is not None:
            style = torch.zeros_like(style)
        if control == "no_image":
            rows = replace(rows, tokens=torch.zeros_like(rows.tokens))
        with system.model.ungated() if control == "ungated" else nullcontext():
            answers = system.model.generate(rows.tokens, style, text, self._options)
        return [_as_row(each) | seen for each, seen in zip(answers, self._describe_styles(asked.rows), strict=True)]

    def answer_or_explain(self, asked: Questions) -> list[dict[str, Any]]:
        """Return one row per question, which for one that cannot be asked is `error` alone."""
        reasons = [self._why_not(question) for question in asked.questions]
        possible = [number for number, reason in enumerate(reasons) if not reason]
        rows: list[dict[str, Any]] = [{"error": reason} for reason in reasons]
        for number, row in zip(possible, self.answer(asked.only(possible)) if possible else (), strict=True):
            rows[number] = row
        return rows

    def _why_not(self, question: str) -> str:
        try:
            self._system.encoder.encode(question)
        except ValueError as error:
            return str(error)
        return ""

    def _describe_styles(self, rows: Rows) -> list[dict[str, Any]]:
        """Return the likeliest style of each picture and its probability; nothing where the encoder knows no styles."""
        if rows.logits is None or not self._style_names:
            return [{} for _ in range(len(rows))]
        best = rows.logits.softmax(dim=-1).max(dim=-1)
        return [
            {"seen_style": self._style_names[number], "style_probability": round(share, DIGITS)}
            for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _as_row(answer: Generated) -> dict[str, Any]:
    return {"answer": answer.text, "log_prob": round(answer.mean_log_prob, DIGITS), "truncated": answer.truncated}

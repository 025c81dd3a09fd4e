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
    Attributes:
        n_cut: Questions so far that were longer than `PROMPT.MAX_QUESTION_TOKENS`.
    """

    def __init__(self, system: GatedSystem, node: CfgNode) -> None:
        self._system, self.n_cut = system, 0
        self._options = GenerateOptions(node.GEN.NUM_BEAMS, node.GEN.MAX_NEW_TOKENS, node.GEN.LENGTH_PENALTY)
        encoder = system.towers.style_encoder
        self._style_names = () if encoder is None or encoder.class_names is None else encoder.class_names

    @torch.no_grad()
    def answer(self, asked: Questions, *, control: str = "") -> list[dict[str, Any]]:
        """Return one row per question: `answer`, `mean_log_prob`, `truncated`, `seen_style`, `style_probability`.

        The last two are the style encoder's word, None where it knows no styles.

        Args:
            asked: The questions.
            control: What is taken away: `no_style`, `no_image`, `ungated`; anything else takes nothing.
        """
        system = self._system
        texts = [system.encoder.encode(question) for question in asked.questions]
        text = collate(texts, pad_id=system.encoder.pad_id, side="left")
        self.n_cut += sum(each.cut for each in texts)
        style, rows = system.style_of(asked.rows, asked.labels), asked.rows
        if control == "no_style" and style is not None:
            style = torch.zeros_like(style)
        if control == "no_image":
            rows = replace(rows, tokens=torch.zeros_like(rows.tokens))
        with system.model.ungated() if control == "ungated" else nullcontext():
            answers = system.model.generate(rows.tokens, style, text, self._options)
        return [_as_row(each) | seen for each, seen in zip(answers, self._describe_styles(asked.rows), strict=True)]

    def answer_or_explain(self, asked: Questions, named: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per question, which for one that cannot be asked is `error` alone.

        Args:
            asked: The questions.
            named: What is said to be the style of each picture; "" = nothing.
        """
        reasons = [self._why_not(*pair) for pair in zip(asked.questions, named, strict=True)]
        possible = [number for number, reason in enumerate(reasons) if not reason]
        rows: list[dict[str, Any]] = [{"error": reason} for reason in reasons]
        for number, row in zip(possible, self.answer(asked.only(possible)) if possible else (), strict=True):
            rows[number] = row
        return rows

    def _why_not(self, question: str, named: str) -> str:
        """Return why a question cannot be asked; "" if it can."""
        encoder, source = self._system.encoder, self._system.style_source
        try:
            length = encoder.n_queries + len(encoder.encode(question).prompt) + self._options.max_new_tokens
            if source is not None and source.kind == "label":
                self._check_style(named)
        except ValueError as error:
            return str(error)
        if length > encoder.max_positions:
            positions = encoder.max_positions
            return f"the question and GEN.MAX_NEW_TOKENS take {length} positions; the language model has {positions}"
        return ""

    def _check_style(self, named: str) -> None:
        if not named:
            raise ValueError("no style is given, which STYLE.SOURCE label needs; expected a table with a column style")
        self._system.towers.views.names.index(named)

    def _describe_styles(self, rows: Rows) -> list[dict[str, Any]]:
        """Return the likeliest style of each picture and its probability."""
        if rows.logits is None or not self._style_names:
            return [{"seen_style": None, "style_probability": None}] * len(rows)
        best = rows.logits.softmax(dim=-1).max(dim=-1)
        return [
            {"seen_style": self._style_names[number], "style_probability": round(share, DIGITS)}
            for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _as_row(answer: Generated) -> dict[str, Any]:
    return {"answer": answer.text, "mean_log_prob": round(answer.mean_log_prob, DIGITS), "truncated": answer.truncated}


def predicted_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as predictions have it: the style in it is the one seen, as there is no other; an `error` stays alone."""
    if "error" in row:
        return row
    names = {"answer": "answer", "mean_log_prob": "mean_log_prob", "seen_style": "style"}
    names |= {"style_probability": "style_probability", "truncated": "truncated"}
    return {shown: row[name] for name, shown in names.items()}

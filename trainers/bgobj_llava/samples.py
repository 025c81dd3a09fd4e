"""Training samples of visual question answering: what is learned from an item, and which items cannot be used."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dassl.data.datasets import Datum

from trainers.question_items import extras_of, learned_answer, problems_with_questions

logger = logging.getLogger(__name__)

NEEDED = ("question", "answers", "boxes")  # extras of every VQA data set
LISTED = 10
Turns = list[tuple[str, str | None]]


def problems_with_items(items: Sequence[Datum], name: str, *, ocr_tokens: bool) -> list[str]:
    """Return a message if items are no questions about images, or lack the OCR tokens that are asked for.

    Args:
        items: Of all splits.
        name: Of the data set.
        ocr_tokens: Whether `EVAL.OCR_TOKENS` asks for them.
    """
    problems = problems_with_questions(items, name, needed=NEEDED, trainer="BgObjLLaVA")
    if ocr_tokens and not any("ocr_tokens" in extras_of(item) for item in items):
        problems.append(f"TRAINER.BGOBJLLAVA.EVAL.OCR_TOKENS is True, but DATASET.NAME {name} has none; expected TextVQA")
    return problems


def turns_of(extras: Mapping[str, Any], *, ocr_tokens: bool = False) -> Turns:
    """Return the (question, answer) pairs that are learned from an item.

    Args:
        extras: Of the item. `turns`, JSON, if it has several; else `question` and `answers`.
        ocr_tokens: Append the reference OCR tokens to the question, as LLaVA-1.5's evaluation of TextVQA does.
    """
    if extras.get("turns"):
        return [(question, answer) for question, answer in json.loads(extras["turns"])]
    return [(question_of(extras, ocr_tokens=ocr_tokens), learned_answer(json.loads(extras["answers"])))]


def question_of(extras: Mapping[str, Any], *, ocr_tokens: bool) -> str:
    """Return an item's question, with the reference OCR tokens if asked for and known."""
    tokens = json.loads(extras.get("ocr_tokens", "[]")) if ocr_tokens else []  # TextVQA has them
    return f"{extras['question']}\nReference OCR token: {', '.join(tokens)}" if tokens else extras["question"]


@dataclass
class Drops:
    """Samples that cannot be learned from, by reason.

    Attributes:
        total: Samples looked at, dropped ones included.
        reasons: Reason -> what was dropped, for the log.
        longest: Tokens of the longest sequence that was kept.
    """

    total: int = 0
    reasons: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    longest: int = 0

    @property
    def count(self) -> int:
        """Number of dropped samples."""
        return sum(map(len, self.reasons.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, for a report."""
        return {"samples": self.total, "dropped": {reason: len(names) for reason, names in self.reasons.items()}}

    def log(self) -> None:
        """Say how many were dropped and why, and list the first ten of each reason."""
        for reason, names in self.reasons.items():
            more = f"\n  and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
            logger.info("Dropped, %s: %s of %s samples\n  %s%s", reason, f"{len(names):,}", f"{self.total:,}",
                        "\n  ".join(names[:LISTED]), more)  # fmt: skip

    def check(self, limit: float, key: str) -> None:
        """Stop if too much was dropped.

        Args:
            limit: Largest share, [0, 1].
            key: Of the config, for the message.
        Raises:
            ValueError: With the counts by reason.
        """
        if self.count > limit * self.total:
            counts = ", ".join(f"{reason}: {len(names):,}" for reason, names in self.reasons.items())
            raise ValueError(
                f"{self.count:,} of {self.total:,} training samples cannot be used ({counts}), more than {key} {limit:g}; "
                "mend the data, or raise the limit"
            )


def drop_unusable(items: list[Datum], length_of: Callable[[Turns], int], *, max_len: int, ocr_tokens: bool = False) -> Drops:
    """Take the samples out of `items`, in place, that cannot be learned from.

    In place, because Dassl's loaders and samplers hold this list.

    Args:
        items: Of the training split.
        length_of: Turns -> tokens of the whole sequence, image included; a ValueError may have a `reason`, short and countable.
        max_len: Longest sequence, tokens.
        ocr_tokens: As in `turns_of`.
    Returns:
        What was dropped.
    """
    drops, kept = Drops(total=len(items)), []
    for item in items:
        length, reason = _measure(turns_of(extras_of(item), ocr_tokens=ocr_tokens), length_of, max_len)
        if reason is None:
            kept.append(item)
            drops.longest = max(drops.longest, length)
        else:
            drops.reasons[reason].append(f"{item.impath}: {extras_of(item)['question']}")
    items[:] = kept
    return drops


def _measure(turns: Turns, length_of: Callable[[Turns], int], max_len: int) -> tuple[int, str | None]:
    """Return the tokens of a sample, and why it cannot be learned from."""
    if any(answer is None for _, answer in turns):
        return 0, "empty answer"
    try:
        length = length_of(turns)
    except ValueError as error:
        return 0, getattr(error, "reason", str(error))
    return length, f"longer than MAX_LEN {max_len} tokens" if length > max_len else None

"""Items of visual question answering: what a data set says about them, what is learned, and what an evaluator compares with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dassl.data.datasets import Datum

OPTIONAL = ("question_id", "style")  # of a target


def extras_of(item: Datum) -> Mapping[str, Any]:
    """Return what the data set says about an item beside image and label."""
    return getattr(item, "extras", {})


def references_of(item: Datum) -> list[str]:
    """Return an item's reference answers; blank ones count as none."""
    return [answer for answer in map(str, json.loads(extras_of(item)["answers"])) if answer.strip()]


def learned_answer(references: Sequence[str]) -> str:
    """Return the most frequent reference, the first of them if several are; "" if there is none."""
    return Counter(references).most_common(1)[0][0] if references else ""


def target_of(item: Datum) -> dict[str, Any]:
    """Return what the evaluator `VQA` needs to know of an item."""
    extras = extras_of(item)
    target = {"question": extras["question"], "answers": json.loads(extras["answers"]), "impath": item.impath}
    target["question_type"] = extras.get("question_type", "")
    return target | {key: extras[key] for key in OPTIONAL if extras.get(key)}


def problems_with_questions(items: Sequence[Datum], name: str, *, needed: Sequence[str], trainer: str) -> list[str]:
    """Return a message if items are no questions about images.

    Args:
        items: Of all splits.
        name: Of the data set.
        needed: Extras that every item must have.
        trainer: Name of the trainer that asks.
    """
    missing = sorted({key for item in items for key in needed if key not in extras_of(item)})
    if not missing:
        return []
    return [
        f"DATASET.NAME {name}: its items have no {', '.join(missing)}; {trainer} answers questions: expected VQAJson, "
        "ArtQuest, AQUA, OCRVQA, TextVQA, or MiniScenes with DATASET.MINI_VIEW questions"
    ]

"""What answers are worth without some of what the model sees: controls of a test."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dassl.data.datasets import Datum

from trainers.evaluators.vqa_text import exact_match, normalise_answer
from trainers.question_items import extras_of, references_of

logger = logging.getLogger(__name__)

ANY_TYPE = "vqa"  # of questions whose type nobody said
MAJORITY, SHUFFLED = "majority", "shuffled_style"
STYLE_CONTROLS = (SHUFFLED, "no_style", "ungated")  # mean nothing without gates


def majority_answers(items: Iterable[Datum]) -> dict[str, str]:
    """Return question type -> its most frequent first reference, which comes first among equals.

    Args:
        items: Of the training split.
    """
    counts: dict[str, Counter[str]] = {}
    for item in items:
        references = references_of(item)
        if references:
            counts.setdefault(type_of(item), Counter())[normalise_answer(references[0])] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def accuracy_of(answers: Sequence[str], items: Sequence[Datum]) -> dict[str, float]:
    """Return the share of answers that match a reference, percent: `accuracy`, and `accuracy/TYPE` where there are several.

    Args:
        answers: One per item.
        items: Those without references do not count.
    Returns:
        Nothing if no item counts.
    """
    hits: dict[str, list[float]] = {}
    for answer, item in zip(answers, items, strict=True):
        references = references_of(item)
        if references:
            hits.setdefault(type_of(item), []).append(float(exact_match(answer, tuple(references))))
    if not hits:
        return {}
    overall = {"accuracy": _percent([hit for members in hits.values() for hit in members])}
    return overall | ({f"accuracy/{kind}": _percent(hits[kind]) for kind in sorted(hits)} if len(hits) > 1 else {})


def style_gap(true: Mapping[str, float], permuted: Mapping[str, float]) -> dict[str, float]:
    """Return how much accuracy the right styles are worth, in points: `style_gap`, and per question type."""
    return {name.replace("accuracy", "style_gap", 1): true[name] - permuted[name] for name in true}


def majority_accuracy(train: Sequence[Datum], tested: Sequence[Datum]) -> dict[str, float]:
    """Return the accuracy of always giving a type's most frequent training answer."""
    common = majority_answers(train)
    return accuracy_of([common.get(type_of(item), "") for item in tested], tested)


def measure(
    names: Sequence[str],
    said: Sequence[str],
    answer: Callable[[str], Sequence[str]],
    *,
    train: Sequence[Datum],
    tested: Sequence[Datum],
    has_gates: bool,
    is_permuted: bool,
) -> dict[str, float]:
    """Measure controls, and say what they came to.

    Args:
        names: `EVAL.CONTROLS`; those that mean nothing without gates are then left out.
        said: Answers of the test itself.
        answer: Control -> answers under it.
        train: Items of the training split.
        tested: One item per answer.
        has_gates: Whether style reaches the model at all.
        is_permuted: Whether the test itself had permuted styles, and its control the true ones (`STYLE.SOURCE shuffled`).
    Returns:
        `control/NAME/accuracy`, percent, and `style_gap`, points; both also per question type. Nothing without references.
    """
    found, gap, main = {}, {}, accuracy_of(said, tested)
    if not main:
        return {}
    for name in names:
        if name == MAJORITY:
            found[name] = majority_accuracy(train, tested)
        elif has_gates or name not in STYLE_CONTROLS:
            found[name] = accuracy_of(answer(name), tested)
    if SHUFFLED in found:
        gap = style_gap(*((found[SHUFFLED], main) if is_permuted else (main, found[SHUFFLED])))
    named = {f"control/{control}/{name}": value for control, scores in found.items() for name, value in scores.items()} | gap
    if named:
        _log(named)
    return named


def _log(figures: Mapping[str, float]) -> None:
    """Say what the controls came to, beside the test's own block."""
    lines = [f"* {name}: {value:.1f}{'' if name.startswith('style_gap') else '%'}" for name, value in figures.items()]
    logger.info("%s", "\n".join(["=> controls", *lines]))


def type_of(item: Datum) -> str:
    """Return the type of an item's question."""
    return str(extras_of(item).get("question_type") or ANY_TYPE)


def answers_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the answers of rows."""
    return [str(row["answer"]) for row in rows]


def _percent(shares: Sequence[float]) -> float:
    return 100.0 * sum(shares) / len(shares)

"""Whether the parts of a data set may be learned from and tested on together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dassl.data.datasets import Datum

# `split_kind` of data sets that stand one part in for another, and say so.
VAL_AS_TEST, TESTS_ONLY = "val as test", "tests only"


def tests_on_validation(data: Any) -> bool:
    """Whether a data set has no test part of its own, so that what it calls test is its validation part."""
    return getattr(data, "split_kind", None) == VAL_AS_TEST


def find_split_problems(data: Any, has_target: Callable[[Datum], bool], *, needs_val: bool) -> list[str]:
    """Return one message per reason why training on a data set would be wrong.

    Args:
        data: Dassl data set. Several items may ask about one image; an image leaks whatever is asked about it.
        has_target: Whether an item says what is right; images without may be both learned from and predicted.
        needs_val: Whether the model is chosen on the validation part.
    """
    kind = getattr(data, "split_kind", None)
    if kind == TESTS_ONLY:
        return ["the data set has no train part, its items are those of the test part; expected one to learn from"]
    problems, tested = [], {item.impath for item in data.test}
    parts = {"train": data.train_x, "val": [] if tests_on_validation(data) else data.val or []}
    for name, items in parts.items():
        shared = dict.fromkeys(item.impath for item in items if item.impath in tested and has_target(item))
        if shared:
            problems.append(f"{len(shared)} labelled image(s) are in both {name} and test, e.g. {next(iter(shared))}")
    if needs_val and not any(map(has_target, data.val or [])):
        problems.append("TEST.FINAL_MODEL is 'best_val', but the data set has no val split with labels; expected last_step")
    return problems

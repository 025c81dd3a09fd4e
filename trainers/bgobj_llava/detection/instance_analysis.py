"""Which samples of an evaluation deserve a look: the rows of `predictions.jsonl`, sorted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
ORDERS = ("loss", "flip", "area")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows that the evaluator `VQA` writes.

    Raises:
        ValueError: If a line is no JSON object with `impath` and `answer` (names file and line).
    """
    rows = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not {"impath", "answer"} <= row.keys():
            raise ValueError(f"{path}, line {number} has no impath and answer; expected predictions.jsonl of an evaluation")
        rows.append(row)
    return rows


def loss_of(row: Row) -> float:
    """Return a row's `loss`; without one, what its exact match lacks: 1 for a wrong answer."""
    if "loss" in row:
        return float(row["loss"])
    return 1.0 - float(row.get("scores", {}).get("accuracy", 0.0))


def area_of(row: Row) -> int:
    """Return the number of object tokens of a row.

    Raises:
        ValueError: If it has none.
    """
    for name in ("n_o", "n_obj"):
        if name in row:
            return int(row[name])
    raise ValueError(f"{row['impath']}: no n_o in this row; --sort area needs predictions of a run with a split")


def find_flips(rows: Sequence[Row], before: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows whose answer differs from another evaluation's, with `answer_before`, `loss_before` and `flip`.

    Args:
        rows: Of the evaluation to look at.
        before: Of the other one, for example with `SPLIT none`; paired by image and question.
    Returns:
        `flip` is `lost` (was right), `won` (is right), or `other`.
    Raises:
        ValueError: If no row has a partner.
    """
    partners = {_key(row): row for row in before}
    pairs = [(row, partners[_key(row)]) for row in rows if _key(row) in partners]
    if rows and not pairs:
        raise ValueError("the two prediction files share no image and question")
    return [
        {**row, "answer_before": old["answer"], "loss_before": loss_of(old), "flip": _kind(loss_of(row), loss_of(old))}
        for row, old in pairs
        if row["answer"] != old["answer"]
    ]


def sort_rows(rows: Sequence[Row], order: str, before: Sequence[Row] | None = None) -> list[Row]:
    """Sort rows, the most telling first: highest loss, lost answers before others, largest object area.

    Args:
        order: One of `ORDERS`; `flip` keeps only answers that changed.
        before: The other evaluation, for `flip`.
    Raises:
        ValueError: For another order, or `flip` without another evaluation.
    """
    if order == "flip":
        if before is None:
            raise ValueError("--sort flip compares two evaluations; expected --against predictions.jsonl")
        kinds = ("lost", "other", "won")
        return sorted(find_flips(rows, before), key=lambda row: (kinds.index(row["flip"]), -loss_of(row)))
    keys: dict[str, Callable[[Row], float]] = {"loss": loss_of, "area": area_of}
    if order not in keys:
        raise ValueError(f"--sort is {order!r}; expected one of {', '.join(ORDERS)}")
    return sorted(rows, key=keys[order], reverse=True)


def _kind(now: float, before: float) -> str:
    return "lost" if now > before else "won" if now < before else "other"


def _key(row: Row) -> tuple[str, str]:
    return str(row["impath"]), str(row.get("question_id") or row.get("question", ""))

"""What a table says about a picture beside its label: votes for the classes, and extras of the user's own."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_ext.text_files import normalise_name
from datasets.image_files import UNLABELLED
from datasets.vote_tables import reason_to_exclude

logger = logging.getLogger(__name__)

Cells = Mapping[str, Any]  # of one row, by column

# The batch has entries of these names already, or gets them from votes.
TAKEN_NAMES = re.compile(r"(img\d*|index|impath|domain|classname|distribution|has_distribution)?")


@dataclass(frozen=True)
class Vote:
    """A row's votes.

    Attributes:
        distribution: C shares that sum to 1; zeros if no vote was given.
        label: The class with the most votes, the first of several; -1 if no vote was given.
        tied: Whether there are several.
    """

    distribution: tuple[float, ...]
    label: int
    tied: bool

    @property
    def extras(self) -> dict[str, int | tuple[float, ...]]:
        """The two entries that trainers and evaluators read."""
        return {"distribution": self.distribution, "has_distribution": int(self.label != UNLABELLED)}


def has_vote_columns(file: Path, columns: Sequence[str], classnames: Sequence[str]) -> bool:
    """Whether every class has a column of its exact name.

    Raises:
        ValueError: If only some have one (lists the missing), or names differ in case, `_` or `-` only.
    """
    missing = [name for name in classnames if name not in columns]
    if not missing:
        return True
    resembling = {normalise_name(column): column for column in columns}
    near = {name: resembling[normalise_name(name)] for name in missing if normalise_name(name) in resembling}
    if len(missing) == len(classnames) and not near:
        return False
    listed = ", ".join(f"{name} (found {near[name]!r})" if name in near else name for name in missing)
    found = len(classnames) - len(missing)
    raise ValueError(
        f"{file}: {found} of {len(classnames)} classes have a column of votes; there is none named {listed}. "
        "Name one column exactly like each class; a column that holds no votes needs another name"
    )


def read_votes(
    file: Path, rows: Sequence[tuple[int, Cells]], classnames: Sequence[str]
) -> tuple[dict[int, Vote], list[str]]:
    """Read the vote columns by name, wherever they stand.

    Args:
        file: For the log.
        rows: Line number and cells of every row.
        classnames: In label order.
    Returns:
        Votes by line, and a message for each cell that is no number. Rows that are no distribution (NaN, infinite or
        negative numbers, a blank among numbers, no mass) have no votes here; they are counted and listed in the log.
    """
    votes: dict[int, Vote] = {}
    problems: list[str] = []
    unusable: dict[str, list[int]] = {}
    for line, cells in rows:
        try:
            found = _read_row({name: cells[name] for name in classnames})
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        if isinstance(found, Vote):
            votes[line] = found
        else:
            unusable.setdefault(found, []).append(line)
    if unusable:
        count = sum(map(len, unusable.values()))
        reasons = "; ".join(f"{fault}: line {', '.join(map(str, lines))}" for fault, lines in unusable.items())
        logger.warning("%s: %d of %d rows are left out, their votes are no distribution (%s)", file, count, len(rows), reasons)
    return votes, problems


def _read_row(cells: Cells) -> Vote | str:
    """Return the votes of a row, or why they are no distribution; a cell that is no number raises ValueError."""
    blank = [name for name, cell in cells.items() if cell is None or cell == ""]
    if len(blank) == len(cells):
        return Vote((0.0,) * len(cells), UNLABELLED, False)
    values = [math.nan if name in blank else _to_number(name, cell) for name, cell in cells.items()]
    fault = reason_to_exclude(values)
    if fault:
        return fault
    total, top = sum(values), max(values)
    return Vote(tuple(value / total for value in values), values.index(top), values.count(top) > 1)


def _to_number(name: str, cell: Any) -> float:
    try:
        if isinstance(cell, bool):
            raise TypeError
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"column {name} is {cell!r}; expected a number of votes or a probability") from None


def fit_extras(file: Path, columns: Sequence[str], rows: Sequence[Cells]) -> list[dict[str, float | str | tuple[float, ...]]]:
    """Turn all other columns into extras of one type each, since they are batched: numbers, equal-length tuples, or text.

    Args:
        file: For the log.
        columns: The other columns.
        rows: Cells of every row.
    Returns:
        One mapping per row, in order. Columns whose name the batch uses itself are left out and logged.
    """
    taken = [name for name in columns if TAKEN_NAMES.fullmatch(name)]
    if taken:
        logger.warning("%s: columns left out, since batches use their names: %s", file, ", ".join(map(repr, taken)))
    kept = [name for name in columns if name not in taken]
    by_column = {name: _fit_column([row[name] for row in rows]) for name in kept}
    if by_column:
        kinds = ", ".join(f"{name} ({type(values[0]).__name__})" for name, values in by_column.items())
        logger.info("%s: extra columns: %s", file, kinds)
    return [{name: by_column[name][position] for name in kept} for position in range(len(rows))]


def _fit_column(cells: Sequence[Any]) -> list[Any]:
    """Return the cells as int, float, tuples of numbers of one length, or text: the first that fits all."""
    for kind in (int, float):
        try:
            numbers = [_exactly(kind, cell) for cell in cells]
        except (TypeError, ValueError):
            continue
        return numbers
    if all(isinstance(cell, list) and all(_is_number(part) for part in cell) for cell in cells):
        if len({len(cell) for cell in cells}) == 1:
            return [tuple(map(float, cell)) for cell in cells]
    return ["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells]


def _is_number(part: Any) -> bool:
    return isinstance(part, (int, float)) and not isinstance(part, bool)


def _exactly(kind: type, cell: Any) -> int | float:
    """Convert a number or its text; text that would change, like 007, stays text."""
    if isinstance(cell, str):
        if cell != cell.strip() or re.match(r"[+-]?0\d", cell) or "_" in cell:
            raise ValueError(cell)
        return kind(cell)
    if not _is_number(cell) or (kind is int and not isinstance(cell, int)):
        raise TypeError(cell)
    return kind(cell)

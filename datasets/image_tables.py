"""Own images as tables: a CSV or JSONL file with a row per picture.

Columns: `path` or `image`; `label` (class name or number; blank = unlabelled); optionally `split`; optionally one column per
class, named exactly like it, with votes or probabilities. All others travel with the picture as extras.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.csv_rows import read_rows
from datasets.image_extras import Cells, Vote, fit_extras, has_vote_columns, read_votes
from datasets.image_files import UNLABELLED, ImageList, Row, read_text, some
from datasets.image_folders import SPLIT_WORDS

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "image")
OWN_COLUMNS = (*PATH_COLUMNS, "label", "split")
INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Table:
    """Cells of a file.

    Attributes:
        file: Where it comes from.
        columns: Names, in the order of the file.
        rows: Line number (from 1) and cells by column; an absent cell is None.
    """

    file: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Cells], ...]


def read_table(file: Path, image_dir: Path, classnames: tuple[str, ...] | None, *, ties: str = "first") -> ImageList:
    """Read a table of own images.

    Args:
        file: A .csv or .jsonl file, UTF-8.
        image_dir: Folder that relative paths start from.
        classnames: Fixes the order of the classes and what a number in `label` means; by default the sorted names in `label`.
        ties: DATASET.TIES, for labels that come from votes: `drop` leaves tied rows out, all else takes the first class.
    Returns:
        The pictures; rows whose votes are no distribution are left out and listed in the log.
    Raises:
        ValueError: One for all that is wrong with the columns, or with the cells (file, lines, values, allowed values).
    """
    table = read_csv(file) if file.suffix.lower() == ".csv" else read_jsonl(file)
    _check_columns(table)
    names = classnames or _names_in(table)
    has_votes = has_vote_columns(file, table.columns, names)
    if not has_votes and "label" not in table.columns:
        raise ValueError(
            f"{file} has neither a column 'label' nor a column of votes for each of {', '.join(names)}; "
            f"found {_listed(table.columns)}"
        )
    rows, problems = _parse_rows(table, image_dir, names)
    votes, wrong_cells = read_votes(file, table.rows, names) if has_votes else ({}, [])
    problems += wrong_cells
    if problems:
        raise ValueError(f"{file}: {len(problems)} wrong cell(s)\n  " + some(problems, "\n  "))
    others = [name for name in table.columns if name not in OWN_COLUMNS and not (has_votes and name in names)]
    extras = fit_extras(file, others, [cells for _, cells in table.rows])
    found = [(line, replace(row, extras=extra)) for (line, _), row, extra in zip(table.rows, rows, extras, strict=True)]
    kept = _join_votes(file, found, votes, ties) if has_votes else [row for _, row in found]
    form = f"{file.suffix[1:].upper()} file{' with vote columns' if has_votes else ''}"
    return ImageList(form, image_dir, names, tuple(sorted(kept, key=lambda row: row.path.as_posix())))


def read_csv(file: Path) -> Table:
    """Read a comma-separated file with a header.

    Raises:
        ValueError: If it is no such file, or rows have more or fewer cells than the header (names the lines).
    """
    rows = read_rows(file, read_text(file))
    if not rows:
        raise ValueError(f"{file} is empty; expected a header with the columns path (or image) and label")
    header = rows.pop(0)[1]
    other = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if other:
        raise ValueError(f"{file}: its columns are separated by {other!r}; expected ','")
    uneven = [f"line {line} has {len(cells)}" for line, cells in rows if len(cells) != len(header)]
    if uneven:
        raise ValueError(f"{file}: the header has {len(header)} cells, but {some(uneven)}")
    return Table(file, tuple(header), tuple((line, dict(zip(header, cells, strict=True))) for line, cells in rows))


def read_jsonl(file: Path) -> Table:
    """Read a file with one JSON object per line.

    Raises:
        ValueError: If a line is no JSON object (names it).
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(read_text(file).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file}, line {line} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {line} is {text.strip()[:60]!r}; expected a JSON object")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{file} is empty; expected JSON objects with the keys path (or image) and label")
    columns = tuple(dict.fromkeys(key for _, row in rows for key in row))
    return Table(file, columns, tuple((line, {column: row.get(column) for column in columns}) for line, row in rows))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _check_columns(table: Table) -> None:
    problems = []
    doubled = [name for name, count in Counter(table.columns).items() if count > 1]
    if doubled:
        problems.append(f"columns that stand twice: {_listed(doubled)}")
    if sum(name in table.columns for name in PATH_COLUMNS) != 1:
        problems.append(f"expected one column named {' or '.join(PATH_COLUMNS)}, found {_listed(table.columns)}")
    if problems:
        raise ValueError(f"{table.file}: {'; '.join(problems)}")


def _names_in(table: Table) -> tuple[str, ...]:
    """The class names that stand in `label`, sorted."""
    advice = "name the classes, one per line, in classes.txt beside the file or in the file that DATASET.CLASSNAMES names"
    if "label" not in table.columns:
        raise ValueError(
            f"{table.file} has no column 'label', found {_listed(table.columns)}. Labels can come from columns of votes, but "
            f"only of known classes: {advice}"
        )
    names = {text for _, cells in table.rows if (text := _text(cells["label"])) and text != str(UNLABELLED)}
    if not names:
        raise ValueError(f"{table.file}: no row has a label; {advice}")
    if all(INTEGER.fullmatch(name) for name in names):
        raise ValueError(f"{table.file}: all labels are numbers ({some(sorted(names), ', ')}); {advice}")
    return tuple(sorted(names))


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _parse_rows(table: Table, image_dir: Path, classnames: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    """Return a row per line, and what is wrong with lines."""
    path_column = next(name for name in PATH_COLUMNS if name in table.columns)
    rows: list[Row] = []
    problems: list[str] = []
    lines: dict[Path, int] = {}
    for line, cells in table.rows:
        name = _text(cells[path_column])
        label = _parse_label(_text(cells.get("label")), classnames)
        split = SPLIT_WORDS.get(_text(cells["split"]).lower()) if "split" in table.columns else ""
        path = Path(os.path.normpath(image_dir / name))
        if not name:
            problems.append(f"line {line}: {path_column} is blank")
        elif lines.setdefault(path, line) != line:
            problems.append(f"line {line}: {name} stands in line {lines[path]} already")
        if label is None:
            allowed = f"{', '.join(classnames)}, or 0 to {len(classnames) - 1}, or a blank cell (unlabelled)"
            problems.append(f"line {line}: label is {_text(cells['label'])!r}; expected {allowed}")
        if split is None:
            problems.append(f"line {line}: split is {_text(cells['split'])!r}; expected {', '.join(SPLIT_WORDS)}")
        rows.append(Row(path, UNLABELLED if label is None else label, split or "", f"{table.file.name}, line {line}"))
    return rows, problems


def _parse_label(text: str, classnames: tuple[str, ...]) -> int | None:
    """The label that a name or number means; None for neither."""
    if text in ("", str(UNLABELLED)):
        return UNLABELLED
    if text in classnames:
        return classnames.index(text)
    return int(text) if INTEGER.fullmatch(text) and 0 <= int(text) < len(classnames) else None


def _join_votes(file: Path, rows: Iterable[tuple[int, Row]], votes: Mapping[int, Vote], ties: str) -> list[Row]:
    """Add votes to the rows that have usable ones; a row without a label gets that of the votes."""
    joined: list[Row] = []
    tied: list[int] = []
    labelled = agreeing = 0
    for line, row in rows:
        if line not in votes:
            continue
        vote = votes[line]
        if row.label == UNLABELLED and vote.tied:
            tied.append(line)
            if ties == "drop":
                continue
        if UNLABELLED not in (row.label, vote.label):
            labelled += 1
            agreeing += vote.distribution[row.label] == max(vote.distribution)
        label = vote.label if row.label == UNLABELLED else row.label
        joined.append(replace(row, label=label, extras={**row.extras, **vote.extras}))
    if tied:
        outcome = "left out" if ties == "drop" else "given the first of the tied classes"
        logger.info("%s: %d rows whose label comes from tied votes are %s (DATASET.TIES)", file, len(tied), outcome)
    if labelled:
        logger.info("%s: the label has the most votes in %d of %d rows", file, agreeing, labelled)
    if 2 * agreeing < labelled:
        logger.warning("%s: labels and votes mostly disagree; are columns mixed up?", file)
    return joined

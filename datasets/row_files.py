"""Rows of tables and of JSON Lines files, with their origins, and which of their columns are which of ours."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.csv_rows import read_rows
from datasets.text_decode import FileForm

DELIMITERS = (",", "\t", ";")
TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Attributes:
        columns: Names of the header, in the order of the file.
        rows: Origin for messages, and cells; a row may have another number of cells than the header.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, list[str]], ...]


def read_table(file: Path, form: FileForm, expected: str) -> Rows:
    """Read a table with a header, separated by commas, tabs or semicolons.

    Args:
        file: The table.
        form: How it is written.
        expected: The columns, in words, for the message about an empty file.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or quotes do not match.
    """
    text = form.decode(file)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        raise ValueError(f"{file} is empty; expected a header with {expected}")
    # The separator is the one that divides the header; a comma inside a sentence does not count.
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    rows = read_rows(file, text, delimiter)
    columns = rows.pop(0)[1]
    return Rows(tuple(columns), tuple((f"{file.name}, line {number}", cells) for number, cells in rows))


def read_json_lines(file: Path, form: FileForm) -> list[tuple[str, Any]]:
    """Return (origin, value) per line that is not blank; the value of a line that is no JSON is None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of the form's encoding.
    """
    rows: list[tuple[str, Any]] = []
    for number, line in enumerate(form.decode(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None  # becomes a fault
        rows.append((f"{file.name}, line {number}", row))
    return rows


def match_columns(
    file: Path,
    columns: Sequence[str],
    form: FileForm,
    aliases: Mapping[str, Sequence[str]],
    *,
    needed: Sequence[str],
    may_lack: Sequence[str] = (),
) -> dict[str, str]:
    """Return ours -> theirs for the columns that are there.

    Args:
        file: For messages.
        columns: What it has.
        form: Its `columns` come before `aliases`.
        aliases: Ours -> the names that published files use, the first one wins.
        needed: Ours that have to be there.
        may_lack: Ours that this file may lack although the form names them.
    Raises:
        ValueError: If a needed column, or one that the form names, is missing, or one stands twice.
    """
    found = {ours: next((name for name in names if name in columns), "") for ours, names in aliases.items()}
    found |= form.columns
    absent = [f"{ours}={name}" for ours, name in form.columns.items() if name not in columns and ours not in may_lack]
    absent += [ours for ours in needed if not found[ours]]
    listed = ", ".join(columns)
    if absent:
        raise ValueError(f"{file} has no column for {', '.join(absent)}; found {listed}. {form.node}.COLUMNS gives other names")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file}: a column stands twice; found {listed}")
    return {ours: theirs for ours, theirs in found.items() if theirs}

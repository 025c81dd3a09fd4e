"""Reading files of questions: CSV, JSON Lines, LLaVA's JSON, and VQAv2's pair of questions and annotations.

Rows that cannot be used come back as faults, to be reported together; a file that is none of these forms is an error.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.csv_rows import read_rows
from datasets.vqa_decode import decode, read_json
from datasets.vqa_llava import clean_question, read_conversation
from datasets.vqa_records import ALIASES, Fault, Reading, as_text, read_cells
from datasets.vqa_v2 import find_annotations, read_pair

DELIMITERS = (",", "\t", ";")
TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class FileForm:
    """How the files are written.

    Attributes:
        encoding: Codec of the text.
        columns: Ours -> theirs, for columns with other names than `ALIASES` knows.
    Raises:
        ValueError: If `encoding` is no codec.
    """

    encoding: str = "utf-8-sig"
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"DATASET.VQA.ENCODING is {self.encoding!r}; expected a codec, such as cp1252") from None


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Read DATASET.VQA.COLUMNS.

    Raises:
        ValueError: If an entry is not `ours=theirs`, or a name of ours is unknown or given twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in str(pair).partition("="))
        if not equals or not theirs or ours not in ALIASES or ours in columns:
            expected = f'"ours=theirs", ours once each of {", ".join(ALIASES)}'
            raise ValueError(f"DATASET.VQA.COLUMNS holds {pair!r}; expected {expected}")
        columns[ours] = theirs
    return columns


def read_questions(files: Sequence[Path], form: FileForm) -> list[Reading]:
    """Read one file of questions, or VQAv2's two.

    Args:
        files: The file; of VQAv2 the questions, and the annotations if there are any.
        form: How they are written.
    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If it cannot be decoded, is of no known form, or lacks a column that is needed.
    """
    file = files[0]
    if file.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(file, form)
    if file.suffix.lower() == ".jsonl":
        return _read_objects(file, _parse_lines(file, form), form)
    content = read_json(file, form.encoding)
    if isinstance(content, list):
        return _read_objects(file, [(f"{file.name}, entry {n}", row) for n, row in enumerate(content, 1)], form)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        annotations = files[1] if len(files) > 1 else find_annotations(file)
        return read_pair(file, content, read_json(annotations, form.encoding) if annotations else None)
    raise ValueError(f"{file}: expected a list of objects, or VQAv2's object with a list `questions`")


def _parse_lines(file: Path, form: FileForm) -> list[tuple[str, Any]]:
    """Return (origin, value) per line of a JSON Lines file; None for a line that is no JSON."""
    rows: list[tuple[str, Any]] = []
    for number, line in enumerate(decode(file, form.encoding).removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None  # becomes a fault
        rows.append((f"{file.name}, line {number}", row))
    return rows


def _read_objects(file: Path, rows: Sequence[tuple[str, Any]], form: FileForm) -> list[Reading]:
    objects = [row for _, row in rows if isinstance(row, dict)]
    if not objects:
        raise ValueError(f"{file} holds no JSON object")
    flat = dict.fromkeys(name for row in objects if "conversations" not in row for name in row)
    names = _match_columns(file, list(flat), form) if flat else {}
    return [_read_object(row, names, origin) for origin, row in rows]


def _read_object(row: Any, names: Mapping[str, str], origin: str) -> Reading:
    if not isinstance(row, dict):
        return Fault("no JSON object", origin)
    if "conversations" in row:
        return read_conversation(row, origin)
    asked = names["question"]  # LLaVA's evaluation files hold its prompt
    return read_cells({**row, asked: clean_question(as_text(row.get(asked)))}, names, origin)


def _read_table(file: Path, form: FileForm) -> list[Reading]:
    text = decode(file, form.encoding)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        raise ValueError(f"{file} is empty; expected a header with image, question and answer")
    # The separator is the one that divides the header; a comma inside a question does not count.
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    rows = read_rows(file, text, delimiter)
    columns = rows.pop(0)[1]
    names = _match_columns(file, columns, form)
    return [_read_line(cells, columns, names, f"{file.name}, line {number}") for number, cells in rows]


def _read_line(cells: list[str], columns: list[str], names: Mapping[str, str], origin: str) -> Reading:
    if len(cells) != len(columns):
        return Fault("other number of cells than the header", origin)
    return read_cells(dict(zip(columns, cells, strict=True)), names, origin)


def _match_columns(file: Path, columns: Sequence[str], form: FileForm) -> dict[str, str]:
    """Return ours -> theirs for the columns that are there.

    Raises:
        ValueError: If a needed column, or one that DATASET.VQA.COLUMNS names, is missing, or one stands twice.
    """
    found = {ours: next((name for name in aliases if name in columns), "") for ours, aliases in ALIASES.items()}
    found |= form.columns
    # Questions of a test file may have no answers, whatever the column is called elsewhere.
    absent = [f"{ours}={theirs}" for ours, theirs in form.columns.items() if theirs not in columns and ours != "answer"]
    absent += [ours for ours in ("image", "question") if not found[ours]]
    listed = ", ".join(columns)
    if absent:
        raise ValueError(f"{file} has no column for {', '.join(absent)}; found {listed}. DATASET.VQA.COLUMNS gives other names")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file}: a column stands twice; found {listed}")
    return {ours: theirs for ours, theirs in found.items() if theirs}

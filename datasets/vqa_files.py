"""Reading files of questions: CSV, JSON Lines, LLaVA's JSON, and VQAv2's pair of questions and annotations.

Rows that cannot be used come back as faults, to be reported together; a file that is none of these forms is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.csv_rows import as_text
from datasets.row_faults import Fault
from datasets.row_files import TABLE_SUFFIXES, match_columns, read_json_lines, read_table
from datasets.text_decode import FileForm
from datasets.vqa_llava import clean_question, read_conversation
from datasets.vqa_records import ALIASES, Reading, read_cells
from datasets.vqa_v2 import find_annotations, read_pair


def read_questions(files: Sequence[Path], form: FileForm, *, answered: bool = False) -> list[Reading]:
    """Read one file of questions, or VQAv2's two.

    Args:
        files: The file; of VQAv2 the questions, and the annotations if there are any.
        form: How they are written.
        answered: A table has to have a column of answers.
    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If it cannot be decoded, is of no known form, or lacks a column that is needed.
    """
    file = files[0]
    if file.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(file, form, answered)
    if file.suffix.lower() == ".jsonl":
        return _read_objects(file, read_json_lines(file, form), form)
    content = form.read_json(file)
    if isinstance(content, list):
        return _read_objects(file, [(f"{file.name}, entry {n}", row) for n, row in enumerate(content, 1)], form)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        annotations = files[1] if len(files) > 1 else find_annotations(file)
        return read_pair(file, content, form.read_json(annotations) if annotations else None)
    raise ValueError(f"{file}: expected a list of objects, or VQAv2's object with a list `questions`")


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


def _read_table(file: Path, form: FileForm, answered: bool) -> list[Reading]:
    table = read_table(file, form, "image, question and answer")
    columns = list(table.columns)
    names = _match_columns(file, columns, form, answered)
    return [_read_line(cells, columns, names, origin) for origin, cells in table.rows]


def _read_line(cells: list[str], columns: list[str], names: Mapping[str, str], origin: str) -> Reading:
    if len(cells) != len(columns):
        return Fault("other number of cells than the header", origin)
    return read_cells(dict(zip(columns, cells, strict=True)), names, origin)


def _match_columns(file: Path, columns: Sequence[str], form: FileForm, answered: bool = False) -> dict[str, str]:
    # Questions of a test file may have no answers, whatever the column is called elsewhere.
    needed, may_lack = (("image", "question", "answer"), ()) if answered else (("image", "question"), ("answer",))
    return match_columns(file, columns, form, ALIASES, needed=needed, may_lack=may_lack)

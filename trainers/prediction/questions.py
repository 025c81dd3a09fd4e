"""What is asked: images with one question, or tables (JSON lines, CSV) of images and questions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum

from trainers.prediction.files import FoundImages, find_images

TABLES = (".jsonl", ".csv")
IMAGE_COLUMNS, QUESTION_COLUMNS = ("image", "impath"), ("question", "text")
# What every VQA data set says about an item; "" = nobody said, unlike "[]" for boxes: there are none.
UNKNOWN = {"answers": "[]", "boxes": "", "question_id": "", "question_type": "", "style": "", "turns": ""}


@dataclass(frozen=True)
class Asked:
    """One question about one image.

    Attributes:
        impath: Image file; relative ones of a table are found beside it.
        question: "" if none is known.
        extras: What a data set's item would say besides, such as boxes.
        error: Why it cannot be asked; "" if it can.
    """

    impath: str
    question: str
    extras: dict[str, str]
    error: str = ""

    def row(self, *, with_id: bool) -> dict[str, Any]:
        """Return how its row of the output begins."""
        number = {"question_id": self.extras.get("question_id", "")} if with_id else {}
        return {"impath": self.impath, **number, "question": self.question}

    def item(self) -> QuestionItem:
        """Return it in a data set's form."""
        return QuestionItem(self.impath, UNKNOWN | {"question": self.question} | self.extras)


class QuestionItem(Datum):
    """A Dassl datum with extras, as the items of our data sets have them.

    Args:
        impath: Existing file.
        extras: Of a VQA data set's item.
    """

    def __init__(self, impath: str, extras: dict[str, str]) -> None:
        super().__init__(impath=impath, label=-1)
        self._extras = extras

    @property
    def extras(self) -> dict[str, str]:
        return self._extras


@dataclass
class FoundQuestions:
    """What the given files, folders and tables ask.

    Attributes:
        asked: In the order of the inputs.
        others: Files in the folders that are no images.
    """

    asked: list[Asked]
    others: list[str]


def find_questions(inputs: Sequence[str], question: str | None) -> FoundQuestions:
    """Read what is asked.

    Args:
        inputs: Image files, folders, and tables.
        question: Asked of every image, and of every row of a table that has none.
    Raises:
        FileNotFoundError: If an input does not exist, or there is no image at all.
        ValueError: If images are given without a question, or a table lacks its columns.
    """
    tables = [given for given in inputs if Path(given).suffix.lower() in TABLES and not Path(given).is_dir()]
    images = [given for given in inputs if given not in tables]
    if images and not (question and question.strip()):
        raise ValueError(f"--question is missing: what to ask of {images[0]}; or give a table (.jsonl, .csv) with questions")
    found = find_images(images) if images else FoundImages()
    asked = [Asked(path, question or "", {}) for path in found.paths]
    for table in tables:
        asked += _read_table(Path(table), question or "")
    if not asked:
        raise ValueError(f"{', '.join(tables)}: no question in it")
    return FoundQuestions(asked, found.others)


def _read_table(path: Path, question: str) -> list[Asked]:
    """Return the rows of a table; one that cannot be asked says why."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (looked in {Path.cwd()})")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    return [_read_row(row, path, number, question) for number, row in rows]


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not set(IMAGE_COLUMNS) & set(columns):
            raise ValueError(
                f"{path} has columns {', '.join(columns) or 'none'}; expected {' or '.join(IMAGE_COLUMNS)}, and question"
            )
        for row in reader:
            yield reader.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, f"no JSON: {error}"


def _read_row(row: Any, path: Path, number: int, default: str) -> Asked:
    if not isinstance(row, dict):
        reason = row if isinstance(row, str) and row.startswith("no JSON") else f"{type(row).__name__}; expected an object"
        return Asked("", "", {}, f"{path.name}, line {number}: {reason}")
    image, question = (_first_of(row, columns) for columns in (IMAGE_COLUMNS, QUESTION_COLUMNS))
    question, extras = question.strip() or default, _extras_of(row)
    impath = (Path(image) if Path(image).is_absolute() else path.parent / image).as_posix() if image else ""
    problems = []
    if not image:
        problems.append(f"no {' or '.join(IMAGE_COLUMNS)}")
    elif not Path(impath).is_file():
        problems.append(f"no such image: {impath}")
    if not question:
        problems.append("no question")
    error = f"{path.name}, line {number}: {'; '.join(problems)}" if problems else ""
    return Asked(impath, question, extras, error)


def _first_of(row: dict[str, Any], columns: Sequence[str]) -> str:
    return next((str(row[name]) for name in columns if row.get(name) not in (None, "")), "")


def _extras_of(row: dict[str, Any]) -> dict[str, str]:
    """Return boxes (as JSON text) and names that a row knows."""
    extras = {name: str(row[name]) for name in ("question_id", "question_type", "style") if row.get(name) not in (None, "")}
    boxes = row.get("boxes")
    if boxes not in (None, ""):
        extras["boxes"] = boxes if isinstance(boxes, str) else json.dumps(boxes)
    return extras

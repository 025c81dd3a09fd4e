"""Which images are asked for, and how their predictions are written: CSV with flat columns, or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from torchvision.datasets.folder import IMG_EXTENSIONS

from clip_ext.files import replacing

SUFFIXES = (".csv", ".jsonl")


@dataclass
class FoundImages:
    """What the given files and folders hold.

    Attributes:
        paths: Image files, each once, sorted within a folder; as given, with `/` between folders.
        others: Files in the folders that are no images.
    """

    paths: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find_images(inputs: Sequence[str]) -> FoundImages:
    """Find the images below files and folders; folders are searched to the bottom.

    In a folder the file's extension decides, in any case; a file that is named itself is taken for an image whatever it is
    called. Hidden files and folders are passed over.

    Raises:
        FileNotFoundError: If an input does not exist, or there is no image at all (says what was there).
    """
    missing = [given for given in inputs if not Path(given).exists()]
    if missing:
        raise FileNotFoundError(f"no such file or folder: {', '.join(missing)} (looked in {Path.cwd()})")
    found, seen = FoundImages(), set()
    for given in inputs:
        path = Path(given)
        for file in _files_below(path) if path.is_dir() else [path]:
            identity = os.path.realpath(file)
            if identity in seen:
                continue
            seen.add(identity)
            is_image = file == path or file.suffix.lower() in IMG_EXTENSIONS
            (found.paths if is_image else found.others).append(file.as_posix())
    if not found.paths:
        raise FileNotFoundError(
            f"no image in {', '.join(inputs)}: {len(found.others)} other file(s); expected names ending in "
            f"{', '.join(IMG_EXTENSIONS)}"
        )
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def check_output(output: str) -> Path:
    """Return the path to write to.

    Raises:
        ValueError: If the name ends in neither .csv nor .jsonl, or names a folder.
        FileNotFoundError: If its folder does not exist.
    """
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output is {output!r}; expected a name ending in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"--output {output!r} is a folder; expected a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder {path.absolute().parent}")
    return path


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come; the file appears when the last one is written, and replaces an older one.

    Args:
        path: Ends in .csv or .jsonl.
        rows: With the same keys, but for failed rows, which have some of them. `error` is "" elsewhere and the last column.
    """
    # A file name that is no valid text is written with escapes: the output stays UTF-8.
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        if path.suffix.lower() == ".csv":
            _write_csv(file, rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write what holds for all rows alike as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8", errors="backslashreplace")


def _write_csv(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    waiting, writer = [], None  # failed rows at the start wait for the first one that knows the columns
    for row in map(flatten_row, rows):
        waiting.append(row)
        if writer is None and not row["error"]:
            writer = csv.DictWriter(file, list(row), restval="", lineterminator="\n")
            writer.writeheader()
        if writer is not None:
            writer.writerows(waiting)
            waiting.clear()
    if waiting:
        columns = dict.fromkeys(name for row in waiting for name in row)
        writer = csv.DictWriter(file, sorted(columns, key=lambda name: name == "error"), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(waiting)


def flatten_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose nested values have columns of their own: `distribution.joy`, `top.1.label` (counted from 1).

    Yes and no are `true` and `false`, nothing is an empty cell.
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, (dict, list)):
            parts = value if isinstance(value, dict) else {str(number): part for number, part in enumerate(value, start=1)}
            flat |= {f"{name}.{inner}": cell for inner, cell in flatten_row(parts).items()}
        else:
            flat[name] = {True: "true", False: "false", None: ""}[value] if value is None or isinstance(value, bool) else value
    return flat

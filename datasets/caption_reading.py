"""Reading files of captions: text lines, tables, JSON Lines, the usual JSON forms, and Flickr30k's two lists.

Rows that cannot be used come back as faults, to be reported together; a file that is none of these forms is an error.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.caption_json import read_content
from datasets.caption_records import ALIASES, CaptionReading, CaptionRecord, read_cells
from datasets.image_files import list_images
from datasets.row_faults import Fault
from datasets.row_files import TABLE_SUFFIXES, match_columns, read_json_lines, read_table
from datasets.text_decode import FileForm

SUFFIXES = (".txt", *TABLE_SUFFIXES, ".jsonl", ".json")

_NUMBER_AND_CAPTION = re.compile(r"(\d+)\s+(\S.*)")


def read_captions_of(file: Path, form: FileForm) -> list[CaptionReading]:
    """Return what a file of captions holds, or the pictures of a folder, without captions.

    Args:
        file: `.txt` lines, `.csv`, `.tsv`, `.jsonl`, `.json`, Flickr30k's `.token`, or a folder.
        form: How it is written.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, is of no known form, or lacks the column of captions.
    """
    if file.is_dir():
        return read_picture_folder(file)
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise ValueError(f"{file} ends in {file.suffix!r}; expected one of {', '.join(_READERS)}, or a folder of pictures")
    return [replace(row, file=file) if isinstance(row, CaptionRecord) else row for row in read(file, form)]


def read_picture_folder(folder: Path) -> list[CaptionReading]:
    """Return a record without captions per picture directly in a folder, sorted by name; for prediction.

    Raises:
        ValueError: If there is none.
    """
    pictures, _ = list_images(folder)
    if not pictures:
        raise ValueError(f"no picture directly in the folder {folder}")
    return [CaptionRecord((), str(path), (str(path),), path.name) for path in pictures]


def _read_text_lines(file: Path, form: FileForm) -> list[CaptionReading]:
    """Return a record per line of a text file; blank lines are blank captions.

    Raises:
        ValueError: If the first line is a table's header (names the remedy).
    """
    lines = form.decode(file).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if not any(map(str.strip, lines)):
        raise ValueError(f"{file} holds no caption; expected one per line")
    header = [cell.strip().lower() for cell in re.split(r"[,;|\t]", lines[0])]
    if len(header) > 1 and any(name in header for name in ALIASES["caption"]) and any(n in header for n in ALIASES["image"]):
        raise ValueError(f"{file}: its first line, {lines[0].strip()!r}, is a table's header; rename the file to .csv")
    return [CaptionRecord((line.strip(),), f"{file.name}, line {number}") for number, line in enumerate(lines, 1)]


def _read_json_lines(file: Path, form: FileForm) -> list[CaptionReading]:
    return _read_objects(file, read_json_lines(file, form), form)


def _read_json(file: Path, form: FileForm) -> list[CaptionReading]:
    content = form.read_json(file)
    if isinstance(content, list) and not all(isinstance(row, str) for row in content):
        return _read_objects(file, [(f"{file.name}, entry {n}", row) for n, row in enumerate(content, 1)], form)
    return read_content(file, content)


def _read_objects(file: Path, rows: Sequence[tuple[str, Any]], form: FileForm) -> list[CaptionReading]:
    names = dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row)
    if not names:
        raise ValueError(f"{file} holds no JSON object; expected objects with caption, or captions")
    found = match_columns(file, list(names), form, ALIASES, needed=("caption",))
    return [
        read_cells(row, _with_captions(row, found), origin) if isinstance(row, dict) else Fault("no JSON object", origin)
        for origin, row in rows
    ]


def _with_captions(row: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return the names for a row: `caption` and `captions` may take turns in one file."""
    other = next((name for name in ALIASES["caption"] if name in row), "")
    return {**names, "caption": other} if other and names["caption"] not in row else names


def _read_table(file: Path, form: FileForm) -> list[CaptionReading]:
    header = next((line for line in form.decode(file).splitlines() if line.strip()), "")
    if "|" in header:
        return _read_results(file, form)
    table = read_table(file, form, "caption, and image, entities, style or split if you like")
    names = match_columns(file, table.columns, form, ALIASES, needed=("caption",))
    return [
        read_cells(dict(zip(table.columns, cells, strict=True)), names, origin)
        if len(cells) == len(table.columns)
        else Fault("other number of cells than the header", origin)
        for origin, cells in table.rows
    ]


def _read_results(file: Path, form: FileForm) -> list[CaptionReading]:
    """Read Flickr30k's `results.csv`: name, number and caption, separated by bars; the row without a second bar is repaired."""
    lines = [(number, line) for number, line in enumerate(form.decode(file).splitlines(), 1) if line.strip()]
    return [_read_result(line, f"{file.name}, line {number}") for number, line in lines[1:]]


def _read_result(line: str, origin: str) -> CaptionReading:
    cells = [cell.strip() for cell in line.split("|", 2)]
    if len(cells) == 3:
        return CaptionRecord((cells[2],), origin, (cells[0],), cells[0])
    found = _NUMBER_AND_CAPTION.fullmatch(cells[1]) if len(cells) == 2 else None
    if not found or not cells[0]:
        return Fault("no picture | number | caption", origin)
    return CaptionRecord((found[2],), origin, (cells[0],), cells[0], repaired=True)


def _read_tokens(file: Path, form: FileForm) -> list[CaptionReading]:
    """Read Flickr30k's `.token`: `name#number<TAB>caption` per line."""
    rows: list[CaptionReading] = []
    for number, line in enumerate(form.decode(file).split("\n"), 1):
        name, tab, caption = line.partition("\t")
        picture, origin = name.rpartition("#")[0].strip(), f"{file.name}, line {number}"
        if not line.strip():
            continue
        rows.append(
            CaptionRecord((caption.strip(),), origin, (picture,), picture)
            if tab and picture
            else Fault("no picture#number and caption, separated by a tab", origin)
        )
    return rows


_READERS: dict[str, Callable[[Path, FileForm], list[CaptionReading]]] = {
    ".txt": _read_text_lines,
    **dict.fromkeys(TABLE_SUFFIXES, _read_table),
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".token": _read_tokens,
}

"""Cells of a separated-values file with the lines they stand in, and a cell as text."""
from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any


def read_rows(file: Path, text: str, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Return (line where the row starts, stripped cells) of each row that is not blank, the header included.

    Args:
        file: For messages.
        text: Its content.
        delimiter: Between cells.
    Raises:
        ValueError: If quotes do not match (names the line where the row starts).
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1  # quoted cells may hold line ends
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {line}: {error}") from error
    return rows


def as_text(value: Any) -> str:
    """Return a cell as stripped text; None and lists are blank."""
    return "" if value is None or isinstance(value, (list, dict)) else str(value).strip()

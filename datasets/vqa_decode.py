"""Text and JSON files of a stated encoding."""

import json
from pathlib import Path
from typing import Any


def decode(file: Path, encoding: str) -> str:
    """Return a file's text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of that encoding (names line, byte and key).
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    content = file.read_bytes()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not {encoding}; name the file's codec, for example "
            "cp1252, as DATASET.VQA.ENCODING"
        ) from error


def read_json(file: Path, encoding: str) -> Any:
    """Return the value of a JSON file.

    Raises:
        ValueError: If it is no JSON (names the place).
    """
    try:
        return json.loads(decode(file, encoding).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error

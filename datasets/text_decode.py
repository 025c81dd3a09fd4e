"""Text and JSON files of a stated encoding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_ENCODING = "utf-8-sig"


@dataclass(frozen=True)
class FileForm:
    """How the files of a data set are written.

    Attributes:
        node: Of the configuration, for messages: its ENCODING names the codec, its COLUMNS other column names.
        encoding: Codec of the text.
        fallback: Codec of files that are not of that encoding; "" = such files are refused.
        columns: Ours -> theirs, for columns that the data set does not find by itself.
    Raises:
        ValueError: If `encoding` is no codec.
    """

    node: str
    encoding: str = DEFAULT_ENCODING
    fallback: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"{self.node}.ENCODING is {self.encoding!r}; expected a codec, such as cp1252") from None

    def decode(self, file: Path) -> str:
        """Return a file's text, without a byte order mark.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not of that encoding (names line, byte and key).
        """
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}")
        content = file.read_bytes()
        try:
            return content.decode(self.encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            if self.fallback:
                return content.decode(self.fallback)
            line = content[: error.start].count(b"\n") + 1
            raise ValueError(
                f"{file}, line {line}: byte 0x{content[error.start]:02x} is not {self.encoding}; name the file's codec, for "
                f"example cp1252, as {self.node}.ENCODING"
            ) from error

    def read_json(self, file: Path) -> Any:
        """Return the value of a JSON file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no JSON (names the place), or not of that encoding.
        """
        try:
            return json.loads(self.decode(file))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error


def parse_columns(pairs: Sequence[str], names: Sequence[str], node: str) -> dict[str, str]:
    """Read the key COLUMNS.

    Args:
        pairs: Entries `ours=theirs`.
        names: Our columns.
        node: Of the configuration, for messages.
    Raises:
        ValueError: If an entry is not `ours=theirs`, or a name of ours is unknown or given twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in str(pair).partition("="))
        if not equals or not theirs or ours not in names or ours in columns:
            expected = f'"ours=theirs", ours once each of {", ".join(names)}'
            raise ValueError(f"{node}.COLUMNS holds {pair!r}; expected {expected}")
        columns[ours] = theirs
    return columns

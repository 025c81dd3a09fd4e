"""What the readers of own images share: rows, listing a folder, class names from a file, and pictures that cannot be read."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from clip_ext.text_files import normalise_name

logger = logging.getLogger(__name__)

CLASSES_FILE = "classes.txt"
UNLABELLED = -1
SHOWN_PROBLEMS = 5
CHECK_SIDE_PX = 64  # a JPEG is decoded at about this size when only its soundness matters


@dataclass(frozen=True)
class Row:
    """One picture as its folder or file lists it; it need not exist yet.

    Attributes:
        path: Of the picture.
        label: Class index, or -1 for unlabelled.
        split: `train`, `val`, `test`, or "" if nothing says.
        origin: Where it is listed, for messages.
        extras: See `datasets.base.Item`.
    """

    path: Path
    label: int
    split: str = ""
    origin: str = ""
    extras: Mapping[str, float | str | tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageList:
    """Own images as they were found.

    Attributes:
        form: What was detected, in words.
        folder: Folder that portable paths are relative to.
        classnames: In the order of the labels.
        rows: Sorted by path.
    """

    form: str
    folder: Path
    classnames: tuple[str, ...]
    rows: tuple[Row, ...]


def list_images(folder: Path) -> tuple[list[Path], int]:
    """Return the pictures directly in `folder`, sorted by name, and the number of other files; hidden files do not count."""
    files = [entry for entry in visible(folder) if entry.is_file()]
    images = [path for path in files if path.name.lower().endswith(IMG_EXTENSIONS)]
    return images, len(files) - len(images)


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted by name, without hidden ones."""
    return [entry for entry in visible(folder) if entry.is_dir()]


def visible(folder: Path) -> list[Path]:
    """Return the entries of `folder` that are not hidden, sorted by name."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)  # the same order on every system


def find_classnames(path: str, folder: Path) -> tuple[str, ...] | None:
    """Read the class list that was named, or else `classes.txt` in `folder`; None without either.

    Args:
        path: DATASET.CLASSNAMES.
        folder: Of the images, or of the file that lists them.
    Raises:
        FileNotFoundError: If a file was named and does not exist.
        ValueError: See `read_classnames`.
    """
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"DATASET.CLASSNAMES names no file: {file.absolute()}")
        return read_classnames(file)
    file = folder / CLASSES_FILE
    return read_classnames(file) if file.is_file() else None


def read_classnames(file: Path) -> tuple[str, ...]:
    """Read one class name per line; blank lines and lines that start with `#` do not count.

    Raises:
        ValueError: If it is not UTF-8, holds no name, or names a class twice (case, `_` and `-` do not tell names apart).
    """
    lines = [line.strip() for line in read_text(file).splitlines()]
    names = tuple(line for line in lines if line and not line.startswith("#"))
    if not names:
        raise ValueError(f"{file} holds no class name; expected one per line")
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line in names:
            first = numbers.setdefault(normalise_name(line), number)
            if first != number:
                raise ValueError(f"{file}: lines {first} and {number} name the same class, {line!r}")
    return names


def read_text(file: Path) -> str:
    """Read a UTF-8 text, with or without a byte order mark; other encodings are refused, not guessed.

    Raises:
        ValueError: If it is not UTF-8 (names file and line).
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise ValueError(f"{file}, line {line}: byte 0x{byte:02x} is no UTF-8; save the file as UTF-8") from error


def find_broken(paths: Iterable[Path]) -> dict[Path, str]:
    """Decode every picture and return what is wrong with those that cannot be read."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(why_unreadable, unique)
    return {path: reason for path, reason in zip(unique, reasons, strict=True) if reason}


def why_unreadable(path: Path) -> str:
    """Return why a picture cannot be decoded to its end; "" if it can."""
    try:
        if path.stat().st_size == 0:
            return "empty file"
        with Image.open(path) as image:
            image.draft("RGB", (CHECK_SIDE_PX, CHECK_SIDE_PX))  # reads all bytes, yet a JPEG costs a fraction of the time
            image.load()
    except FileNotFoundError:
        return "no such file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        return str(error).replace(f" {str(path)!r}", "") or type(error).__name__
    return ""


def some(problems: Sequence[str], separator: str = "; ") -> str:
    """Join the first few problems, and say how many there are beyond them."""
    more = len(problems) - SHOWN_PROBLEMS
    return separator.join([*problems[:SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])

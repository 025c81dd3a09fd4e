"""Own images in any form: which one it is, the list of pictures, and the items of those that can be read."""

import logging
from pathlib import Path

from yacs.config import CfgNode

from datasets.base import Item
from datasets.image_files import UNLABELLED, ImageList, Row, find_broken, find_classnames, some
from datasets.image_folders import read_folder
from datasets.image_tables import read_table
from datasets.splits import read_split_rows

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".jsonl", ".json")


def read_images(path: Path, settings: CfgNode) -> ImageList:
    """Find out how own images are laid out, and list them without opening one.

    Args:
        path: A folder, or a .csv, .jsonl or .json file.
        settings: The node `DATASET`; IMAGE_DIR, CLASSNAMES and TIES are read.
    Raises:
        FileNotFoundError: If `path`, IMAGE_DIR or CLASSNAMES does not exist.
        ValueError: If it is no known form, or the list is wrong (see the readers).
    """
    if not path.exists():
        forms = f"a folder, or a {', '.join(SUFFIXES)} file"
        raise FileNotFoundError(f"DATASET.ROOT (--data) names nothing: {path}; expected {forms}")
    if path.is_dir():
        found = read_folder(path, find_classnames(settings.CLASSNAMES, path))
    else:
        found = _read_file(path, settings)
    if not found.rows:
        raise ValueError(f"DATASET.ROOT {path} ({found.form}) holds no picture")
    return found


def _read_file(path: Path, settings: CfgNode) -> ImageList:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"DATASET.ROOT (--data) is {path}; expected a folder, or a file that ends in {', '.join(SUFFIXES)}")
    folder = Path(settings.IMAGE_DIR).expanduser().absolute() if settings.IMAGE_DIR else path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"DATASET.IMAGE_DIR names no folder: {folder}")
    classnames = find_classnames(settings.CLASSNAMES, path.parent)
    if suffix == ".json":
        return _read_json(path, folder, classnames)
    return read_table(path, folder, classnames, ties=settings.TIES)


def _read_json(path: Path, folder: Path, classnames: tuple[str, ...] | None) -> ImageList:
    """Read a split file; it names its classes itself, but a list of them may add classes without a picture."""
    parts = read_split_rows(path)
    named = {label: classname for rows in parts.values() for _, label, classname in rows}
    size = max(named, default=0) + 1
    names = dict(enumerate(classnames)) if classnames else {label: named.get(label) for label in range(size)}
    wrong = [f"{label} is {name!r}, not {names.get(label)!r}" for label, name in named.items() if names.get(label) != name]
    if wrong:
        raise ValueError(f"{path} and the list of class names differ: {some(wrong)}")
    unnamed = [str(label) for label, name in names.items() if name is None]
    if unnamed:
        listed = some(unnamed, ", ")
        raise ValueError(f"{path}: labels {listed} have no picture and so no name; name all in classes.txt beside it")
    rows = [
        Row(folder / name, label, part, f"{path.name}, {part} entry {number}")
        for part, found in parts.items()
        for number, (name, label, _) in enumerate(found, 1)
    ]
    return ImageList("split file", folder, tuple(names.values()), tuple(sorted(rows, key=lambda row: row.path.as_posix())))


def build_items(images: ImageList, *, skip_broken: bool) -> list[tuple[str, Item]]:
    """Decode every picture once and return (split, item) of those that are sound.

    Args:
        images: From `read_images`.
        skip_broken: DATASET.SKIP_BROKEN: leave out and log what is missing or broken, instead of stopping.
    Raises:
        ValueError: If pictures are missing or broken and must not be (their number and the first five).
    """
    broken = find_broken(row.path for row in images.rows)
    if broken:
        origins = {row.path: row.origin for row in images.rows}
        listed = some([f"{path} ({', '.join(filter(None, (origins[path], why)))})" for path, why in broken.items()], "\n  ")
        message = f"{len(broken)} of {len(images.rows)} pictures cannot be read:\n  {listed}"
        if not skip_broken:
            raise ValueError(f"{message}\nMend them, or leave them out with DATASET.SKIP_BROKEN True")
        logger.warning("Left out: %s", message)
    names = {**dict(enumerate(images.classnames)), UNLABELLED: ""}
    return [
        (row.split, Item(str(row.path), row.label, classname=names[row.label], extras=row.extras))
        for row in images.rows
        if row.path not in broken
    ]

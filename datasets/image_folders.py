"""Own images as folders: class folders, `train`/`val`/`test` of class folders, or pictures without labels."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets.image_files import CLASSES_FILE, UNLABELLED, ImageList, Row, list_folders, list_images, some, visible

logger = logging.getLogger(__name__)

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def read_folder(folder: Path, classnames: tuple[str, ...] | None) -> ImageList:
    """Read a folder in one of the three forms; what is none of them is refused.

    Args:
        folder: An existing folder.
        classnames: Fixes the order of the classes; needed by pictures without labels.
    Raises:
        ValueError: If the form is unclear (says what was found), class names are missing, or a folder is no class.
    """
    images, others = list_images(folder)
    folders = list_folders(folder)
    others -= (folder / CLASSES_FILE).is_file()
    if others:
        logger.info("%s: %d other files are ignored", folder, others)
    if images and folders:
        raise ValueError(
            f"DATASET.ROOT {folder} holds {len(images)} pictures and also folders ({some([f.name for f in folders], ', ')}); "
            "expected pictures only (unlabelled) or class folders only. Move one of the two out, or list the pictures in a CSV"
        )
    if images:
        return _read_unlabelled(folder, images, classnames)
    parts = {found.name: found for found in folders if found.name in SPLIT_WORDS and list_folders(found)}
    if parts:
        return _read_parts(folder, parts, [f.name for f in folders if f.name not in parts], classnames)
    if folders:
        names = _order_classes({f.name for f in folders}, classnames, folder)
        rows = _read_classes(folder, names, split="")
        return ImageList("folder of class folders", folder, names, _sorted(rows))
    extensions = sorted({entry.suffix or entry.name for entry in visible(folder)})
    raise ValueError(f"DATASET.ROOT {folder} holds no picture and no folder; found {extensions or 'nothing'}")


def _read_unlabelled(folder: Path, images: Sequence[Path], classnames: tuple[str, ...] | None) -> ImageList:
    if classnames is None:
        raise ValueError(
            f"DATASET.ROOT {folder} holds {len(images)} pictures without labels; name the classes to look for, one per line, "
            f"in {folder / CLASSES_FILE} or in the file that DATASET.CLASSNAMES names"
        )
    return ImageList("folder of unlabelled images", folder, classnames, tuple(Row(path, UNLABELLED) for path in images))


def _read_parts(
    folder: Path, parts: Mapping[str, Path], others: Sequence[str], classnames: tuple[str, ...] | None
) -> ImageList:
    """Read `train/`, `val/` or `valid/`, and `test/`, each of class folders."""
    problems = []
    if others:
        problems.append(f"folders beside {', '.join(parts)}: {some(others, ', ')}; expected only train, val (or valid), test")
    if "train" not in parts:
        problems.append("there is no train folder of class folders")
    if "val" in parts and "valid" in parts:
        problems.append("there are val and valid; keep one")
    for part in parts.values():
        loose, _ = list_images(part)
        if loose:
            problems.append(f"{part.name} holds pictures beside its class folders, e.g. {loose[0].name}")
    if problems:
        raise ValueError(f"DATASET.ROOT {folder}: {'; '.join(problems)}")
    names = _order_classes({f.name for part in parts.values() for f in list_folders(part)}, classnames, folder)
    rows = [row for word, part in parts.items() for row in _read_classes(part, names, split=SPLIT_WORDS[word])]
    return ImageList(f"folder with {', '.join(parts)} of class folders", folder, names, _sorted(rows))


def _order_classes(found: set[str], classnames: tuple[str, ...] | None, folder: Path) -> tuple[str, ...]:
    """Class names in the order of their labels: sorted, or as the user's list has them."""
    if classnames is None:
        return tuple(sorted(found))
    unknown = sorted(found - set(classnames))
    if unknown:
        allowed = ", ".join(classnames)
        raise ValueError(f"DATASET.ROOT {folder}: folders {some(unknown, ', ')} are no classes of the list; expected {allowed}")
    return classnames


def _read_classes(folder: Path, classnames: Sequence[str], *, split: str) -> list[Row]:
    rows: list[Row] = []
    nested: list[str] = []
    others = 0
    for label, name in enumerate(classnames):
        if not (folder / name).is_dir():
            continue
        images, ignored = list_images(folder / name)
        nested += [f"{name}/{found.name}" for found in list_folders(folder / name)]
        others += ignored
        rows += [Row(path, label, split) for path in images]
    if nested:
        raise ValueError(f"DATASET.ROOT {folder}: class folders hold folders: {some(nested, ', ')}; expected pictures only")
    if others:
        logger.info("%s: %d other files in class folders are ignored", folder, others)
    return rows


def _sorted(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.path.as_posix()))

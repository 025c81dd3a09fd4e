"""Where the files and pictures of a data set with rows lie, and the keys that such a set cannot follow."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from datasets.base import resolve_builtin_root

# Keys of other data sets, and the values that change nothing.
IDLE = {"SPLIT": ("auto",), "SUBSAMPLE_CLASSES": ("all",), "NUM_SHOTS": (-1, 0), "SKIP_BROKEN": (False,), "DOWNLOAD": (False,)}


class ImageFinder:
    """Finds images in several folders, each name once.

    Args:
        folders: In the order in which they are searched.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._known: dict[tuple[str, ...], Path | None] = {}

    def __call__(self, names: tuple[str, ...]) -> Path | None:
        """Return the first file that one of the names means; None if there is none."""
        if names not in self._known:
            paths = (Path(os.path.normpath(folder / name)) for name in names for folder in self.folders)
            self._known[names] = next((path for path in paths if path.is_file()), None)
        return self._known[names]


def find_folder(cfg: CfgNode, node: str, usual: Sequence[str], owner: str, *, marks: Sequence[str] = ()) -> Path:
    """Return the folder with the files of a data set.

    Args:
        cfg: Read for DATASET.ROOT and for DIR of `node`.
        node: Name of the node below DATASET.
        usual: Folders below DATASET.ROOT that are looked for when DIR is empty; "" = ROOT itself.
        owner: Name of the data set, for messages.
        marks: File names; a folder that has one of them comes before the others.
    Raises:
        FileNotFoundError: If there is none (names key and path).
    """
    root, named = resolve_builtin_root(cfg.DATASET.ROOT, owner), cfg.DATASET[node].DIR
    folders = [root / name for name in ([named] if named else usual)]
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        listed = ", ".join(map(str, folders))
        raise FileNotFoundError(f"data set {owner}: no folder {listed} (DATASET.ROOT, DATASET.{node}.DIR)")
    return next((folder for folder in present if any((folder / mark).is_file() for mark in marks)), present[0])


def find_image_folders(folder: Path, named: str, usual: Sequence[str], key: str) -> list[Path]:
    """Return the folders that image paths are relative to: the one that a key names, else the usual ones that are there.

    Raises:
        FileNotFoundError: If the key names none.
    """
    if not named:
        return [path for name in usual if (path := folder / name).is_dir()]
    if not (folder / named).is_dir():
        raise FileNotFoundError(f"{key} names no folder: {folder / named}")
    return [folder / named]


def discover(folder: Path, stems: Sequence[str], suffixes: Sequence[str], part: str, key: str) -> list[Path]:
    """Return the file with one of the names and endings; [] if there is none.

    Raises:
        ValueError: If several fit (names them and the key that chooses).
    """
    found = [path for stem in stems for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"several files for {part}: {', '.join(path.name for path in found)}; name one as {key}")
    return found


def problems_with_words(node: str, settings: CfgNode, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line per key of a node whose value is none of its words."""
    return [
        f"{node}.{key} is {settings[key]!r}; expected one of {', '.join(words)}"
        for key, words in choices.items()
        if settings[key] not in words
    ]


def problems_with_idle_keys(settings: CfgNode, what: str, idle: Mapping[str, Sequence[object]] = IDLE) -> list[str]:
    """Return a line per key of other data sets that is set although nothing reads it.

    Args:
        settings: The node DATASET.
        what: The data sets that do not read it, in words.
        idle: Key -> values that change nothing.
    """
    return [
        f"DATASET.{key} is {settings[key]!r}; expected {values[0]!r}: {what} do not read it"
        for key, values in idle.items()
        if settings[key] not in values
    ]

"""Splits as files: read and write split JSON, split by class, and keep what was drawn so that it is drawn once.

A split JSON is {"train"|"val"|"test": [[relative POSIX path, label, class name], ...]}, the form of CoOp's
`split_zhou_<Name>.json`.
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from yacs.config import CfgNode

from datasets.base import SUBSAMPLE_CHOICES, Item, choose_few_shots
from datasets.image_files import some
from datasets.stored_rows import INPUTS, stored_rows, write_json

logger = logging.getLogger(__name__)

SPLIT_CHOICES = ("auto", "coop", "official", "seeded")
PARTS = ("train", "val", "test")

Row = tuple[str, int, str]  # POSIX path relative to the image folder, label, class name
Parts = dict[str, list[Item]]


def check_split_keys(cfg: CfgNode) -> None:
    """Check the settings that say how a data set is split, before its images are looked for.

    Raises:
        ValueError: With every wrong one: key, value, allowed values.
    """
    settings, problems = cfg.DATASET, []
    for key, choices in (("SPLIT", SPLIT_CHOICES), ("SUBSAMPLE_CLASSES", SUBSAMPLE_CHOICES)):
        if settings[key] not in choices:
            problems.append(f"DATASET.{key} is {settings[key]!r}; expected one of {', '.join(choices)}")
    if settings.SPLIT_SEED < 0:
        problems.append(f"DATASET.SPLIT_SEED is {settings.SPLIT_SEED}; expected 0 or more")
    if not 0 <= settings.TEST_PERCENT < 1:
        problems.append(f"DATASET.TEST_PERCENT is {settings.TEST_PERCENT}; expected a share in [0, 1), 0 = the set's own")
    if problems:
        raise ValueError("; ".join(problems))


def read_split_json(path: Path, image_dir: Path, *, skip_absent: bool = False) -> Parts:
    """Read a split file.

    Args:
        path: The JSON file; parts that it lacks are empty.
        image_dir: Folder that its image paths are relative to.
        skip_absent: Drop entries without an image, with a warning (DATASET.SKIP_BROKEN).
    Returns:
        Items of `train`, `val` and `test`, in the order of the file.
    Raises:
        ValueError: If it is no split file (names file, part and entry), or gives a label two names.
        FileNotFoundError: If images are absent (names file, entries and paths, at most five, and the total).
    """
    return build_items(read_split_rows(path), image_dir, source=path, skip_absent=skip_absent)


def read_split_rows(path: Path) -> dict[str, list[Row]]:
    """Read the rows of a split file without looking for the images.

    Raises:
        ValueError: See `read_split_json`.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    known = isinstance(content, dict) and content and all(isinstance(content.get(part, []), list) for part in PARTS)
    if not known or set(content) - {*PARTS, INPUTS}:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is no split file: found {found}; expected lists named {', '.join(PARTS)}")
    problems = [
        f"{part} entry {number}: {row!r}"
        for part in PARTS
        for number, row in enumerate(content.get(part, []), 1)
        if not _is_row(row)
    ]
    if problems:
        expected = "[relative path, label 0 or more, class name]"
        raise ValueError(f"{path} has {len(problems)} wrong entries; expected {expected}: {some(problems)}")
    rows = {part: [(name, int(label), classname) for name, label, classname in content.get(part, [])] for part in PARTS}
    check_names(path, rows)
    return rows


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 3:
        return False
    name, label, classname = row
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return False
    return isinstance(label, int) and not isinstance(label, bool) and label >= 0 and isinstance(classname, str)


def check_names(source: Path, rows: Mapping[str, Iterable[Row]]) -> None:
    """Refuse a label that has two names.

    Raises:
        ValueError: Naming file, label and both names.
    """
    names: dict[int, str] = {}
    for part in rows.values():
        for _, label, classname in part:
            if names.setdefault(label, classname) != classname:
                raise ValueError(f"{source}: label {label} is named {names[label]!r} and {classname!r}")


def build_items(
    rows: Mapping[str, Sequence[Row]], image_dir: Path, *, source: Path, skip_absent: bool = False
) -> Parts:
    """Turn rows of any list file into items of existing images.

    Args:
        rows: Part -> rows, in the order of the file.
        image_dir: Folder that the paths are relative to.
        source: The file the rows come from, for messages.
        skip_absent: Drop rows without an image, with a warning.
    Raises:
        FileNotFoundError: If images are absent (names file, entries and paths, at most five, and the total).
    """
    absent = {
        (part, number): image_dir / row[0]
        for part, part_rows in rows.items()
        for number, row in enumerate(part_rows, 1)
        if not (image_dir / row[0]).is_file()
    }
    if absent:
        listed = some([f"{part} entry {number}: {path}" for (part, number), path in absent.items()])
        message = f"{source} names {len(absent)} absent image(s): {listed}"
        if not skip_absent:
            raise FileNotFoundError(f"{message}. DATASET.SKIP_BROKEN True drops them")
        logger.warning("Dropped: %s", message)
    return {
        part: [
            Item(str(image_dir / name), label, classname=classname)
            for number, (name, label, classname) in enumerate(part_rows, 1)
            if (part, number) not in absent
        ]
        for part, part_rows in rows.items()
    }


def write_split_json(path: Path, splits: Mapping[str, Iterable[Item]], image_dir: Path) -> None:
    """Write a split file, whole or not at all, with image paths relative to `image_dir`."""
    rows = {part: [(_relative(item, image_dir), item.label, item.classname) for item in splits.get(part, ())] for part in PARTS}
    write_json(path, rows)


def split_stratified(items: Iterable[Item], shares: Mapping[str, float], *, seed: int) -> Parts:
    """Divide every class by the same shares; equal images and seed give equal parts, wherever the images lie.

    Args:
        items: Items of one folder, in any order.
        shares: Part -> share of the images, summing to 1. The first part gets an image of every class.
        seed: DATASET.SPLIT_SEED.
    Returns:
        The parts in the order of `shares`, each sorted by class and path.
    Raises:
        ValueError: If the shares are negative or do not sum to 1.
    """
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares of a split are {dict(shares)}; expected numbers of 0 or more that sum to 1")
    rng = random.Random(seed)
    by_class: dict[int, list[Item]] = {}
    for item in sorted(items, key=_path_key):
        by_class.setdefault(item.label, []).append(item)
    parts: Parts = {part: [] for part in shares}
    for label in sorted(by_class):
        shuffled = rng.sample(by_class[label], len(by_class[label]))
        first = 0
        for part, count in zip(shares, _counts(len(shuffled), list(shares.values())), strict=True):
            parts[part] += sorted(shuffled[first : first + count], key=_path_key)
            first += count
    return parts


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near `total` times each share (largest remainders), the first at least 1 if there is anything."""
    exact = [total * share for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    if total and not counts[0] and shares[0]:
        counts[counts.index(max(counts))] -= 1
        counts[0] = 1
    return counts


def stored_split(
    folder: Path,
    cfg: CfgNode,
    name: str,
    items: Iterable[Item],
    make: Callable[[], Parts],
    *,
    recipe: Mapping[str, int | float | str] | None = None,
) -> Parts:
    """Make a split once: reuse the stored one as long as its inputs are the same.

    It is stored as `<name>.json` with relative paths in `folder`, or in OUTPUT_DIR if that cannot be written. Moving the
    data does not change it; other images, labels, names, order or settings make it anew.

    Args:
        folder: The data set's folder, which the stored paths are relative to.
        cfg: Read for OUTPUT_DIR.
        name: Stem of the file.
        items: All items that `make` chooses from, in the order that it sees.
        make: Computes the parts, out of `items`.
        recipe: Settings that decide the result, beyond the items: seed, shares.
    Returns:
        Part -> the very items given.
    """
    items = list(items)
    known = {_key(item, folder): item for item in items}
    inputs = {"recipe": dict(recipe or {}), "items_sha256": _hash_items(items, folder)}

    def make_rows() -> dict[str, list[Row]]:
        return {part: [(*_key(item, folder), item.classname) for item in chosen] for part, chosen in make().items()}

    def read(rows: Mapping[str, Iterable[Row]]) -> Parts:
        return {part: [known[path, label] for path, label, _ in chosen] for part, chosen in rows.items()}

    return stored_rows(folder, cfg, name, inputs, make_rows, read)


def stored_few_shots(
    folder: Path, cfg: CfgNode, kind: str, train: Sequence[Item], val: Sequence[Item]
) -> tuple[list[Item], list[Item]]:
    """CoOp's few-shot choice for DATASET.NUM_SHOTS and SEED, stored like a split; both lists whole without shots.

    Args:
        folder: The data set's folder.
        cfg: Read for DATASET.NUM_SHOTS, SEED and OUTPUT_DIR.
        kind: Of the split; choices from several splits lie side by side.
        train: The training items, in the order of the split.
        val: The validation items.
    Raises:
        ValueError: If items are to be drawn and SEED is negative.
    """
    shots, seed = cfg.DATASET.NUM_SHOTS, cfg.SEED
    if shots < 1 or seed < 0:
        return choose_few_shots(train, val, shots=shots, seed=seed)

    def choose() -> Parts:
        chosen = choose_few_shots(train, val, shots=shots, seed=seed)
        return dict(zip(("train", "val"), chosen, strict=True))

    recipe = {"shots": shots, "seed": seed, "train": len(train)}
    name = f"few_shots_{kind}-shots_{shots}-seed_{seed}"
    parts = stored_split(folder, cfg, name, [*train, *val], choose, recipe=recipe)
    return parts["train"], parts["val"]


def _hash_items(items: Iterable[Item], folder: Path) -> str:
    lines = (f"{_relative(item, folder)}\t{item.label}\t{item.classname}" for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(item: Item, folder: Path) -> tuple[str, int]:
    return _relative(item, folder), item.label


def _relative(item: Item, folder: Path) -> str:
    prefix = f"{folder}{os.sep}"  # the usual case, ten times faster than relpath: ImageNet has a million
    inside = item.impath.startswith(prefix)
    path = item.impath[len(prefix) :] if inside else os.path.relpath(item.impath, folder)
    return path.replace(os.sep, "/")


def _path_key(item: Item) -> str:
    return Path(item.impath).as_posix()

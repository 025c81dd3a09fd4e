"""Look for faults in own pictures before a run does: the same forms and settings as `train.py --data`.

    python scripts/check_data.py PATH [DATASET.KEY VALUE ...]

Every picture is read whole. Reported are files that are unreadable or empty, the same bytes twice, in two parts of the split or
under two labels, classes with few pictures, pictures that EXIF turns, and pictures with alpha, CMYK or other colours than RGB
and grey. Exit status: 0 clean, 1 findings, 2 wrong command line.
"""
from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402, F401  (finds the engine)
from clip_ext.console import accept_any_text  # noqa: E402
from dassl.config import get_cfg_default  # noqa: E402
from datasets.base import Item  # noqa: E402
from datasets.custom_images import split_items  # noqa: E402
from datasets.image_files import UNLABELLED, ImageList, Row, find_broken, list_folders  # noqa: E402
from datasets.image_lists import read_images  # noqa: E402
from datasets.splits import split_stratified  # noqa: E402
from trainers.config import add_trainer_configs  # noqa: E402
from trainers.config_merge import Setting, merge_settings  # noqa: E402
from yacs.config import CfgNode  # noqa: E402

FEW_PICTURES = 5  # of a class: below, a split by 70/10/20 leaves parts without it
PLAIN_MODES = ("1", "L", "P", "RGB")  # Pillow's names of what turns into RGB without loss
ORIENTATION = 0x0112  # EXIF tag; 1 = as stored
SHOWN_FINDINGS = 20

Findings = dict[str, list[str]]  # kind -> a line per finding


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> tuple[argparse.Namespace, CfgNode]:
    """Add path and settings to a command line on own images, parse it, and prepare the console.

    Returns:
        The parsed arguments, and the node DATASET; a wrong setting ends the program with a message.
    """
    parser.add_argument("path", help="a folder, or a .csv, .jsonl or .json file")
    parser.add_argument("pairs", nargs="*", metavar="KEY VALUE", help="settings, e.g. DATASET.IMAGE_DIR photos")
    options = parser.parse_intermixed_args(arguments)
    accept_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return options, read_settings(options.path, options.pairs)
    except ValueError as error:
        parser.error(str(error))


def read_settings(path: str, pairs: Sequence[str]) -> CfgNode:
    """The node DATASET for own images at `path`, with KEY VALUE pairs as train.py takes them.

    Raises:
        ValueError: With every wrong pair.
    """
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    if len(pairs) % 2:
        raise ValueError(f"KEY VALUE pairs expected, got {len(pairs)} words: {' '.join(pairs)}")
    settings = [Setting(key, value, "command line") for key, value in zip(pairs[0::2], pairs[1::2], strict=True)]
    problems = [f"{s.key} says nothing about data" for s in settings if not s.key.startswith("DATASET.")]
    problems += merge_settings(cfg, settings)
    if problems:
        raise ValueError("; ".join(problems))
    cfg.DATASET.ROOT = str(Path(path).expanduser().absolute())
    return cfg.DATASET


def check(images: ImageList, settings: CfgNode) -> Findings:
    """Look at every picture; returns the kinds that were found, in a fixed order."""
    names = {row.path: _name(row, images.folder) for row in images.rows}
    faults = find_broken(row.path for row in images.rows)
    sound = [row for row in images.rows if row.path not in faults]
    empty = {path for path, fault in faults.items() if fault == "empty file"}
    parts = _parts(sound, settings)
    copies = _copies(sound)
    found: Findings = {
        "unreadable": [f"{names[path]}: {fault}" for path, fault in faults.items() if path not in empty],
        "empty": [names[path] for path in sorted(empty)] + _empty_folders(Path(settings.ROOT)),
        "same bytes twice": [_joined(names[row.path] for row in rows) for rows in copies if not _differ(rows, parts)],
        "same bytes in two parts": [
            _joined(f"{names[row.path]} ({parts[id(row)]})" for row in rows)
            for rows in copies
            if len({parts[id(row)] for row in rows}) > 1
        ],
        "same bytes under two labels": [
            _joined(f"{names[row.path]} ({images.classnames[row.label]})" for row in rows)
            for rows in copies
            if len({row.label for row in rows}) > 1
        ],
        f"classes with fewer than {FEW_PICTURES} pictures": _tiny_classes(sound, images.classnames),
    }
    rotated, coloured = _headers(sound, names)
    found["turned by EXIF, which training does not do"] = rotated
    found["colours other than RGB or grey"] = coloured
    return {kind: lines for kind, lines in found.items() if lines}


def _name(row: Row, folder: Path) -> str:
    name = row.path.relative_to(folder).as_posix() if row.path.is_relative_to(folder) else str(row.path)
    return f"{name} ({row.origin})" if row.origin else name


def _joined(names: Iterable[str]) -> str:
    return " = ".join(names)


def _parts(rows: Sequence[Row], settings: CfgNode) -> dict[int, str]:
    """The part of every sound row, by its id (a path may be listed twice), as CustomImages would split them."""
    items = [(row.split, Item(str(row.path), row.label)) for row in rows]
    parts, kind = split_items(items, settings, partial(split_stratified, seed=settings.SPLIT_SEED))
    if kind == "none":
        return {id(row): "all" for row in rows}
    part_of = {id(item): part for part, found in parts.items() for item in found}
    return {id(row): part_of[id(item)] for row, (_, item) in zip(rows, items, strict=True)}


def _copies(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of pictures with equal bytes."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(hashlib.sha256(row.path.read_bytes()).hexdigest(), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _differ(rows: Sequence[Row], parts: dict[int, str]) -> bool:
    return len({parts[id(row)] for row in rows}) > 1 or len({row.label for row in rows}) > 1


def _empty_folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    folders = list_folders(root)
    folders += [inner for folder in folders for inner in list_folders(folder)]
    return [f"{folder.relative_to(root).as_posix()}/" for folder in folders if not any(folder.iterdir())]


def _tiny_classes(rows: Sequence[Row], classnames: Sequence[str]) -> list[str]:
    counts = Counter(row.label for row in rows)
    if set(counts) <= {UNLABELLED}:
        return []
    return [f"{name}: {counts[label]}" for label, name in enumerate(classnames) if counts[label] < FEW_PICTURES]


def _headers(rows: Sequence[Row], names: dict[Path, str]) -> tuple[list[str], list[str]]:
    """Pictures that EXIF turns, and pictures whose colours change when they become RGB."""
    rotated, coloured = [], []
    for row in rows:
        with Image.open(row.path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
        if orientation != 1:
            rotated.append(f"{names[row.path]}: orientation {orientation}")
        if mode not in PLAIN_MODES:
            coloured.append(f"{names[row.path]}: {mode}")
    return rotated, coloured


def describe(images: ImageList, settings: CfgNode) -> str:
    """What was found, in one line."""
    counts = Counter(row.label for row in images.rows)
    names = images.classnames if set(counts) == {UNLABELLED} else [f"{n} {counts[i]}" for i, n in enumerate(images.classnames)]
    blank = f", {counts[UNLABELLED]} of them without a label" if counts[UNLABELLED] else ""
    return f"{settings.ROOT}: {images.form}, {len(images.rows)} pictures{blank}, {len(names)} classes ({', '.join(names)})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help=f"list all findings, not {SHOWN_FINDINGS} of a kind")
    options, settings = parse(parser, arguments)
    if not Path(settings.ROOT).exists():
        parser.error(f"{settings.ROOT} does not exist")
    try:
        images = read_images(Path(settings.ROOT), settings)
    except (ValueError, OSError) as error:
        print(error)
        return 1
    print(describe(images, settings))
    findings = check(images, settings)
    for kind, lines in findings.items():
        shown = lines if options.all else lines[:SHOWN_FINDINGS]
        more = [] if len(shown) == len(lines) else [f"... and {len(lines) - len(shown)} more; --all lists them"]
        print(f"\n{kind}: {len(lines)}", *shown, *more, sep="\n  ")
    print(f"\n{sum(map(len, findings.values()))} finding(s)" if findings else "No findings.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

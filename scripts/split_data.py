"""Write the split of own pictures into a file that can be carried to another machine.

    python scripts/split_data.py PATH -o split.json [DATASET.KEY VALUE ...]

The parts are those that `train.py --data PATH` makes with the same settings (DATASET.SPLIT_SEED, TEST_PERCENT, VAL_PERCENT).
Paths in the file are relative to the pictures' folder.
"""
from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from datasets.custom_images import check_parts, split_items  # noqa: E402
from datasets.image_files import UNLABELLED  # noqa: E402
from datasets.image_lists import build_items, read_images  # noqa: E402
from datasets.splits import split_stratified, write_split_json  # noqa: E402
from scripts.check_data import parse  # noqa: E402
from yacs.config import CfgNode  # noqa: E402


def split_data(settings: CfgNode, target: Path) -> str:
    """Write the split file and return what to say about it.

    Args:
        settings: The node DATASET.
        target: The file to write.
    Raises:
        ValueError, OSError: If the pictures cannot be read or split, or the file cannot be written.
    """
    images = read_images(Path(settings.ROOT), settings)
    unlabelled = sum(row.label == UNLABELLED for row in images.rows)
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(images.rows)} pictures have no label; a split file holds labelled ones only")
    items = build_items(images, skip_broken=settings.SKIP_BROKEN)
    parts, kind = split_items(items, settings, partial(split_stratified, seed=settings.SPLIT_SEED))
    check_parts(parts, images.classnames)
    write_split_json(target, parts, images.folder)
    sizes = ", ".join(f"{len(found)} {part}" for part, found in parts.items())
    place = "" if target.parent == images.folder else f" DATASET.IMAGE_DIR {images.folder}"
    lines = [f"wrote {target}: {sizes} ({kind})", f"use it with: python train.py --data {target} ...{place}"]
    if any(row.extras for row in images.rows):
        lines.append("votes and other columns are not in it; a table can name the parts itself, in a column 'split'")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="split file to write")
    options, settings = parse(parser, arguments)
    if options.output.suffix != ".json":
        parser.error(f"-o is {options.output}; its name must end in .json")
    try:
        print(split_data(settings, options.output.expanduser().absolute()))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

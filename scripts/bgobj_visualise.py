"""Look at the split of images: panels as PNG, counts and indices as JSON. Needs no model.

    python scripts/bgobj_visualise.py IMAGES... --file boxes.jsonl --output DIR
    python scripts/bgobj_visualise.py IMAGE --box 10 20 90 80 --output DIR --sweep
    python scripts/bgobj_visualise.py IMAGE --file boxes.jsonl --background-of OTHER_IMAGE --output DIR
    python scripts/bgobj_visualise.py --predictions RUN/predictions.jsonl --sort flip --against BASE/predictions.jsonl \\
        --file boxes.jsonl --output DIR --top 20 --sweep

`--background-of` shows what the cached background of another image would save; its pixels must be equal.
`--sweep` adds a picture of every DILATE, then every OVERLAP_RING. Mask options are those of `TRAINER.BGOBJLLAVA.MASK`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from clip_ext.console import accept_any_text  # noqa: E402
from trainers.bgobj_llava.detection.boxes_file import BoxesFile  # noqa: E402
from trainers.bgobj_llava.detection.detections import Detections, from_boxes  # noqa: E402
from trainers.bgobj_llava.detection.instance_analysis import ORDERS, read_rows, sort_rows  # noqa: E402
from trainers.bgobj_llava.geometry import ASPECTS, Canvas, MaskPolicy, dilate, open_image  # noqa: E402
from trainers.bgobj_llava.visualise import (  # noqa: E402
    CachedPart,
    SplitView,
    save_panels,
    save_view,
    sweep_image,
    sweep_panels,
    sweep_policies,
    view_split,
)
from trainers.prediction.files import find_images  # noqa: E402


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", help="image files and folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--file", help="side file with boxes, of scripts/bgobj_detect.py")
    parser.add_argument(
        "--box", nargs=4, type=float, action="append", metavar=("X1", "Y1", "X2", "Y2"), help="instead: a box, px"
    )
    parser.add_argument("--background-of", help="image whose background is taken for the cached one")
    parser.add_argument("--sweep", action="store_true", help="also show every DILATE and OVERLAP_RING")
    parser.add_argument("--predictions", help="predictions.jsonl of an evaluation, whose images are shown")
    parser.add_argument("--sort", choices=ORDERS, default="loss", help="of the predictions (loss)")
    parser.add_argument("--against", help="predictions.jsonl of another evaluation, for --sort flip")
    parser.add_argument("--top", type=int, default=10, help="how many predictions (10)")
    parser.add_argument("--side-px", type=int, default=336, help="canvas of the vision tower (336)")
    parser.add_argument("--patch-px", type=int, default=14, help="its patches (14)")
    parser.add_argument("--aspect", choices=ASPECTS, default="pad", help="how the image comes onto the canvas (pad)")
    for field in fields(MaskPolicy):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(
            flag, type=type(field.default), default=field.default, help=f"MASK.{field.name.upper()} (%(default)s)"
        )
    return parser.parse_args(arguments)


def rows_to_show(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what to show: predictions in their order, or the images as rows that hold their path only."""
    if bool(args.inputs) == bool(args.predictions):
        raise ValueError("expected either images or --predictions")
    if args.predictions is None:
        return [{"impath": path} for path in find_images(args.inputs).paths]
    before = None if args.against is None else read_rows(args.against)
    return [dict(row) for row in sort_rows(read_rows(args.predictions), args.sort, before)[: args.top]]


class Painter:
    """Draws one row after another.

    Args:
        args: Of the command line.
    Raises:
        ValueError: For impossible mask options or boxes.
        FileNotFoundError: If there is no side file.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.canvas = args, Canvas(args.side_px, args.patch_px, aspect=args.aspect)
        self.policy = MaskPolicy(**{field.name: getattr(args, field.name) for field in fields(MaskPolicy)})
        problems = self.policy.problems()
        if (args.file is None) == (args.box is None):
            problems.append("expected either --file or --box")
        if problems:
            raise ValueError("; ".join(problems))
        self.boxes = None if args.file is None else BoxesFile(args.file)
        self.other = None if args.background_of is None else self.view(args.background_of)

    def find(self, path: str) -> Detections:
        """Return the boxes of an image."""
        found = from_boxes(self.args.box, "--box") if self.boxes is None else self.boxes.find(path)
        if found is None:
            raise ValueError(f"{path} has no record in {self.args.file}; write one with scripts/bgobj_detect.py")
        return found

    def view(self, path: str) -> SplitView:
        """Split an image."""
        return view_split(open_image(path), self.find(path), self.canvas, self.policy)

    def paint(self, row: dict[str, Any], name: str) -> str:
        """Write the files of a row and return a line about it."""
        path = row["impath"]
        view, facts = self.view(path), dict(row)
        if self.other is not None:
            view, facts["cached_from"] = with_background_of(self.other, view), reuse_facts(self.other, view)
        if self.args.sweep:
            views = sweep_image(open_image(path), view.found, self.canvas, sweep_policies(self.policy))
            save_panels(self.args.output / f"{name}_sweep.png", sweep_panels(views), path)
            facts["sweep"] = [sweep_facts(each) for each in views]
        picture, _ = save_view(self.args.output, name, view, facts)
        return f"{picture}: {path}, {len(view.found)} objects, {view.split.objects.sum()} of {self.canvas.n_patches} patches"


def sweep_facts(view: SplitView) -> dict[str, int]:
    """Return the two swept values and what they give."""
    counts = {"objects": int(view.split.objects.sum()), "ring": int(view.split.ring.sum())}
    return {"dilate": view.policy.dilate, "overlap_ring": view.policy.overlap_ring, **counts}


def with_background_of(other: SplitView, view: SplitView) -> SplitView:
    """Show the other image's background as the cached part."""
    background, grid = other.split.background, view.canvas.grid
    rest = ~background
    encoded = dilate(rest.reshape(grid, grid), view.policy.overlap_ring).reshape(-1)
    return SplitView(
        view.original, view.found, view.placed, view.canvas, view.policy, view.split, CachedPart(background, encoded)
    )


def reuse_facts(other: SplitView, view: SplitView) -> dict[str, Any]:
    """Return which patches forbid an exact reuse: objects inside the background, and pixels that differ."""
    background = other.split.background
    differs = view.canvas.cover((other.placed.pixels != view.placed.pixels).any(axis=-1)) > 0
    objects, pixels = (np.flatnonzero(mask & background).tolist() for mask in (view.split.raw, differs))
    return {"exact": not objects and not pixels, "object_inside": objects, "pixels_differ": pixels}


def main() -> None:
    accept_any_text()
    args = parse_args()
    failed = 0
    try:
        rows, painter = rows_to_show(args), Painter(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for number, row in enumerate(rows):
        try:
            print(painter.paint(row, f"{number:04d}_{Path(row['impath']).stem}"))
        except (ValueError, OSError) as error:
            failed += 1
            print(f"no picture of {row['impath']}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

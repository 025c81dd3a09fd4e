"""Find the objects of images once, and write their boxes to a side file for BgObjLLaVA (`TRAINER.BGOBJLLAVA.DET.FILE`).

    python scripts/bgobj_detect.py IMAGES... --output boxes.jsonl --backend rtdetr --weights FOLDER_OR_HUB_ID
    python scripts/bgobj_detect.py FRAMES --output boxes.jsonl --backend bgsub --reference empty_scene.png
    python scripts/bgobj_detect.py IMAGES... --output random.jsonl --backend random --file boxes.jsonl

One JSON line per image, known by the bytes of its file. Run it again to continue after an interruption or to add images.
Backends and their options are those of `TRAINER.BGOBJLLAVA.DET`. Exit code 1 if a file was no image.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING as REQUIRED
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clip_ext.console import accept_any_text  # noqa: E402
from trainers.bgobj_llava.detection.boxes_file import BoxesFile  # noqa: E402
from trainers.bgobj_llava.detection.build import build_detector  # noqa: E402
from trainers.bgobj_llava.detection.options import DETECTING, FRAMES, DetectorOptions  # noqa: E402
from trainers.bgobj_llava.detection.run import (  # noqa: E402
    DetectionCounts,
    look_at_random,
    look_with,
    write_boxes,
)
from trainers.bgobj_llava.geometry import Canvas  # noqa: E402
from trainers.prediction.files import find_images  # noqa: E402

HELP = {
    "weights": "rtdetr, dfine: folder or hub id; ultralytics: an existing file",
    "file": "random: side file with the true boxes",
    "frame": f"what the detector sees: {' or '.join(FRAMES)} (the square canvas)",
    "conf": "least score",
    "iou": "ultralytics: overlap above which the weaker box is dropped",
    "imgsz": "side of a learned detector's input, px, a multiple of 32",
    "max_boxes": "boxes per image",
    "min_area": "least area of a box, px^2",
    "bgsub_tau": "bgsub: grey-level difference of a changed patch",
    "bgsub_frames": "bgsub: frames whose median is the reference",
    "reference": "bgsub: image of the empty scene, instead of the median",
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="image files and folders")
    parser.add_argument("--output", type=Path, required=True, help="side file, .jsonl; continued if it exists")
    parser.add_argument("--backend", required=True, choices=[*DETECTING, "random"])
    parser.add_argument("--classes", nargs="*", default=(), help="names to keep; write =-name to deny one: --classes=-person")
    defaults = {field.name: field.default for field in fields(DetectorOptions) if field.default is not REQUIRED}
    for name, text in HELP.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(defaults[name]), default=defaults[name], help=f"{text} (%(default)s)")
    parser.add_argument(
        "--side-px", type=int, default=336, help="canvas of the vision tower, for bgsub and --frame model (336)"
    )
    parser.add_argument("--patch-px", type=int, default=14, help="its patches (14)")
    parser.add_argument("--device", default="cpu", help="where a learned detector computes (cpu)")
    parser.add_argument("--batch", type=int, default=8, help="images per call (8)")
    return parser.parse_args(arguments)


def detect(args: argparse.Namespace) -> DetectionCounts:
    """Run over the images and return what was done."""
    given = {field.name: getattr(args, field.name) for field in fields(DetectorOptions) if hasattr(args, field.name)}
    options = DetectorOptions(**{**given, "classes": tuple(args.classes)})
    if problems := options.problems():
        raise ValueError("; ".join(problems))
    paths = find_images(args.inputs).paths
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.backend == "random":
        if not args.file:
            raise ValueError("--backend random needs --file: a side file whose boxes give the sizes")
        return write_boxes(paths, look_at_random(BoxesFile(args.file)), args.output, options=options, batch=args.batch)
    canvas = Canvas(args.side_px, args.patch_px)
    detector = build_detector(options, canvas, device=args.device, work_dir=args.output.parent)
    return write_boxes(
        paths, look_with(detector), args.output, options=options, weights_sha256=detector.weights_sha256, batch=args.batch
    )


def main() -> None:
    accept_any_text()
    args = parse_args()
    try:
        counts = detect(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {counts.written} new records, {counts.boxes} boxes, {counts.skipped} images known")
    if counts.empty:
        print(f"no objects in {counts.empty} of the new ones")
    for path, reason in counts.failed.items():
        print(f"no record for {path}: {reason}", file=sys.stderr)
    sys.exit(1 if counts.failed else 0)


if __name__ == "__main__":
    main()

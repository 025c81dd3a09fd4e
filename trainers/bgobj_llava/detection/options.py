"""Which detector there is to choose, and which of its boxes count: `TRAINER.BGOBJLLAVA.DET` as plain values."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.bgobj_llava.detection.detections import Detections, areas_of

NODE = "TRAINER.BGOBJLLAVA.DET"
DETECTING = ("rtdetr", "dfine", "bgsub", "ultralytics", "none")  # from pixels alone
LOOKING_UP = ("precomputed", "random")  # from boxes that are known
BACKENDS = (*LOOKING_UP, *DETECTING)
FRAMES = ("original", "model")
MISSING = ("error", "no_detection")
STRIDE_PX = 32  # of the detectors' coarsest feature map


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector, and which of its boxes count (`TRAINER.BGOBJLLAVA.DET`).

    Attributes:
        backend: One of `BACKENDS`.
        file: Side file with boxes; for `precomputed` and `random` it is read where the data set has none.
        weights: Hub id or folder (`rtdetr`, `dfine`), or an existing file (`ultralytics`).
        frame: The detector sees the `original`, or the canvas of the `model`.
        missing: An image without boxes anywhere: `error` or `no_detection`.
        conf: Least score, [0, 1].
        iou: Overlap above which `ultralytics` drops the weaker of two boxes, (0, 1].
        imgsz: Side of a learned detector's input, px, a multiple of 32.
        max_boxes: Most boxes per image (`MAX`); those of highest score stay.
        classes: Names to keep; `-name` denies; empty = all.
        min_area: Least area of a box, px^2 of the original.
        bgsub_tau: `bgsub`: mean grey-level difference above which a patch is an object, [0, 255).
        bgsub_frames: `bgsub`: the reference is the median of this many last frames.
        reference: `bgsub`: image file of the empty scene, instead of the median.
    """

    backend: str = "precomputed"
    file: str = ""
    weights: str = ""
    frame: str = "original"
    missing: str = "error"
    conf: float = 0.25
    iou: float = 0.7
    imgsz: int = 640
    max_boxes: int = 300
    classes: tuple[str, ...] = ()
    min_area: float = 0.0
    bgsub_tau: float = 12.0
    bgsub_frames: int = 25
    reference: str = ""

    def problems(self, node: str = NODE) -> list[str]:
        """List every value outside its range and every file that is missing, with the key to change."""
        ranges = {
            "BACKEND": (self.backend, self.backend in BACKENDS, f"one of {', '.join(BACKENDS)}"),
            "FRAME": (self.frame, self.frame in FRAMES, f"one of {', '.join(FRAMES)}"),
            "MISSING": (self.missing, self.missing in MISSING, f"one of {', '.join(MISSING)}"),
            "CONF": (self.conf, 0 <= self.conf <= 1, "a score in [0, 1]"),
            "IOU": (self.iou, 0 < self.iou <= 1, "an overlap in (0, 1]"),
            "IMGSZ": (self.imgsz, self.imgsz > 0 and self.imgsz % STRIDE_PX == 0, f"a multiple of {STRIDE_PX} px"),
            "MAX": (self.max_boxes, self.max_boxes > 0, "1 or more boxes"),
            "MIN_AREA": (self.min_area, self.min_area >= 0, "0 or more px^2"),
            "BGSUB_TAU": (self.bgsub_tau, 0 <= self.bgsub_tau < 255, "grey levels in [0, 255)"),
            "BGSUB_FRAMES": (self.bgsub_frames, self.bgsub_frames > 0, "1 or more frames"),
        }
        found = [f"{node}.{key} is {value!r}; expected {allowed}" for key, (value, good, allowed) in ranges.items() if not good]
        return found + self._file_problems(node)

    def _file_problems(self, node: str) -> list[str]:
        found = []
        if self.backend in ("rtdetr", "dfine") and not self.weights:
            found.append(f"{node}.WEIGHTS is empty; {self.backend} expects a folder or a model hub id")
        if self.backend == "ultralytics" and not Path(self.weights).is_file():
            found.append(f"{node}.WEIGHTS is {self.weights!r}; ultralytics expects an existing local weight file")
        if self.backend in LOOKING_UP and self.file and not Path(self.file).is_file():
            found.append(f"{node}.FILE is {self.file!r}; expected a file written by scripts/bgobj_detect.py")
        if self.backend == "bgsub" and self.reference and not Path(self.reference).is_file():
            found.append(f"{node}.REFERENCE is {self.reference!r}; expected an image file")
        return found


def filter_detections(found: Detections, options: DetectorOptions) -> Detections:
    """Keep what the options count: score, class, area, then the best `max_boxes` in their order.

    Raises:
        ValueError: If classes are asked for and the boxes have none.
    """
    keep = (found.scores >= options.conf) & (areas_of(found.boxes) >= options.min_area)
    if options.classes and len(found):
        if not any(found.labels):
            raise ValueError(f"{NODE}.CLASSES is {options.classes}, but these boxes have no class names; expected ()")
        allowed, denied = split_classes(options.classes)
        keep &= np.array([(not allowed or label in allowed) and label not in denied for label in found.labels])
    kept = found.select(keep)
    if len(kept) <= options.max_boxes:
        return kept
    best = np.argsort(-kept.scores, kind="stable")[: options.max_boxes]
    return kept.select(np.sort(best))


def split_classes(classes: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the names to keep (empty = all) and those to deny."""
    denied = {name[1:] for name in classes if name.startswith("-")}
    return {name for name in classes if not name.startswith("-")}, denied


def check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Compare the asked-for classes with a detector's own.

    Raises:
        ValueError: Listing each unknown name with the nearest known ones.
    """
    allowed, denied = split_classes(classes)
    strangers = sorted((allowed | denied) - set(known))
    if strangers:
        near = {name: difflib.get_close_matches(name, known) or list(known[:5]) for name in strangers}
        hints = "; ".join(f"{name!r} (perhaps {', '.join(hints)})" for name, hints in near.items())
        raise ValueError(f"{NODE}.CLASSES has names that this detector's {len(known)} classes lack: {hints}")

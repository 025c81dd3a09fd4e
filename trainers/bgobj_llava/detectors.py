"""What a detector is, what it returns, and which there are. Needs numpy and Pillow only until a detector is built.

No detector runs inside a data loader: `scripts/bgobj_detect.py` writes its boxes beside the images, `boxes_file.py` reads them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.bgobj_llava.geometry import Bools, Canvas, check_boxes

NODE = "TRAINER.BGOBJLLAVA.DET"
DETECTING = ("rtdetr", "dfine", "bgsub", "ultralytics", "none")  # from pixels alone
LOOKING_UP = ("precomputed", "random")  # from boxes that are known
BACKENDS = (*LOOKING_UP, *DETECTING)
FRAMES = ("original", "model")
MISSING = ("error", "no_detection")
STRIDE_PX = 32  # of the detectors' coarsest feature map


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one image; N may be 0.

    Attributes:
        boxes: (N, 4), float32, xyxy in original pixels (after EXIF orientation).
        scores: (N,), float32, [0, 1].
        labels: N class names; "" = unknown.
        masks: (N, h, w), bool, original pixels; None if the detector gives boxes only.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: list[str]
    masks: Bools | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, index: NDArray) -> Detections:
        """Keep the detections of an index or a boolean mask, in its order."""
        positions = np.arange(len(self))[index]
        labels = [self.labels[position] for position in positions]
        return Detections(
            self.boxes[positions], self.scores[positions], labels, None if self.masks is None else self.masks[positions]
        )


def from_boxes(boxes: Sequence | NDArray, source: str = "") -> Detections:
    """Wrap known boxes (N, 4), xyxy in original pixels, as certain detections without a class.

    Raises:
        ValueError: If they are no boxes (names `source`).
    """
    checked = check_boxes(boxes, source).astype(np.float32)
    return Detections(checked, np.ones(len(checked), dtype=np.float32), [""] * len(checked))


class Detector(Protocol):
    """Finds objects.

    Attributes:
        weights_sha256: Hash of its weight file; "" if it has none.
    """

    weights_sha256: str

    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Find the objects of upright RGB images (h, w, 3) of any sizes."""


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


def build_detector(options: DetectorOptions, canvas: Canvas, *, device: str = "cpu", work_dir: str | Path = ".") -> Detector:
    """Build the detector of the options, with their filters and frame.

    Args:
        options: With a backend of `DETECTING`.
        canvas: Of the vision tower; `bgsub` and `FRAME model` work on it.
        device: Where a learned detector computes.
        work_dir: The run's folder; a library that insists on writing settings does so here.
    Raises:
        ValueError: For wrong options (all of them), a backend that only looks boxes up, unknown class names.
        FileNotFoundError: If weights are missing; nothing is asked of a network when offline.
        ImportError: If the backend's package is missing (names the extra).
    """
    problems = options.problems()
    if options.backend in LOOKING_UP:
        problems.append(f"{NODE}.BACKEND {options.backend} looks boxes up; a detector is one of {', '.join(DETECTING)}")
    if problems:
        raise ValueError("; ".join(problems))
    if options.backend == "none":
        return NoDetector()
    return _Filtered(_build_backend(options, canvas, device, Path(work_dir)), options, canvas)


def _build_backend(options: DetectorOptions, canvas: Canvas, device: str, work_dir: Path) -> Detector:
    if options.backend == "bgsub":
        from trainers.bgobj_llava.background_subtraction import BackgroundSubtraction

        return BackgroundSubtraction(canvas, tau=options.bgsub_tau, n_frames=options.bgsub_frames, reference=options.reference)
    if options.backend == "ultralytics":
        from trainers.bgobj_llava.yolo_detector import YoloDetector

        return YoloDetector(options, device=device, settings_dir=work_dir / "ultralytics")
    from trainers.bgobj_llava.detr_detectors import DetrDetector

    return DetrDetector(options, device=device)


class NoDetector:
    """Never finds anything."""

    weights_sha256 = ""

    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Return no object for each image."""
        return [from_boxes([]) for _ in images]


class _Filtered:
    """A detector behind the options' frame and filters."""

    def __init__(self, detector: Detector, options: DetectorOptions, canvas: Canvas) -> None:
        self.detector, self.options, self.canvas = detector, options, canvas
        # Background subtraction works on the canvas by itself and maps back.
        self.in_model_frame = options.frame == "model" and options.backend != "bgsub"

    @property
    def weights_sha256(self) -> str:
        return self.detector.weights_sha256

    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Find the objects of upright RGB images (h, w, 3), in original pixels."""
        found = self._detect_on_canvas(images) if self.in_model_frame else self.detector.detect(images)
        return [
            filter_detections(clip_detections(each, image.shape[1::-1]), self.options)
            for each, image in zip(found, images, strict=True)
        ]

    def _detect_on_canvas(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        places = [self.canvas.place(Image.fromarray(image)) for image in images]
        results = []
        for found, placed in zip(self.detector.detect([placed.pixels for placed in places]), places, strict=True):
            masks = None
            if found.masks is not None:
                height, width = placed.size[::-1]
                masks = np.array([placed.mask_to_original(mask) for mask in found.masks]).reshape(-1, height, width)
            boxes = placed.to_original(found.boxes).astype(np.float32)
            results.append(Detections(boxes, found.scores, found.labels, masks))
        return results


def clip_detections(found: Detections, size: tuple[int, int]) -> Detections:
    """Clip boxes to an image of `size` (width, height); what lies outside, or has no area, is dropped."""
    limits = np.tile(np.asarray(size, dtype=np.float32), 2)
    boxes = np.clip(np.nan_to_num(found.boxes, nan=0.0), 0, limits)
    clipped = Detections(boxes, found.scores, found.labels, found.masks)
    return clipped.select((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


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


def areas_of(boxes: NDArray) -> NDArray:
    """Areas of xyxy boxes (N, 4), (N,), px^2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


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


def random_like(found: Detections, size: tuple[int, int], rng: np.random.Generator) -> Detections:
    """Move every box to a random place in an image of `size` (width, height): the control of equal sizes; masks are dropped."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    corners = rng.random(sides.shape) * np.maximum(np.asarray(size) - sides, 0)
    return Detections(np.concatenate([corners, corners + sides], axis=1).astype(np.float32), found.scores, found.labels)

"""From options to a detector that finds objects in pictures of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.bgobj_llava.detection.background_subtraction import BackgroundSubtraction
from trainers.bgobj_llava.detection.detections import Detections, Detector, clip_detections, from_boxes
from trainers.bgobj_llava.detection.options import DETECTING, LOOKING_UP, NODE, DetectorOptions, filter_detections
from trainers.bgobj_llava.detection.yolo import YoloDetector
from trainers.bgobj_llava.geometry import Canvas


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
        return BackgroundSubtraction(canvas, tau=options.bgsub_tau, n_frames=options.bgsub_frames, reference=options.reference)
    if options.backend == "ultralytics":
        return YoloDetector(options, device=device, settings_dir=work_dir / "ultralytics")
    from trainers.bgobj_llava.detection.detr import DetrDetector  # needs transformers

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

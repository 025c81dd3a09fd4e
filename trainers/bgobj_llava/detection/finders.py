"""Where the boxes of a data set's items come from: their records, a side file, or a detector that ran before.

No detector runs inside a data loader. One that needs pixels looks at a split's images once, before the split is read; for a
large data set `scripts/bgobj_detect.py` does so once for all runs, and `DET.FILE` names its result.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence

import numpy as np
from dassl.data.datasets import Datum
from numpy.typing import NDArray

from trainers.bgobj_llava.detection.boxes_file import BoxesFile
from trainers.bgobj_llava.detection.build import build_detector
from trainers.bgobj_llava.detection.detections import Detections, from_boxes, random_like
from trainers.bgobj_llava.detection.options import LOOKING_UP, NODE, DetectorOptions, filter_detections
from trainers.bgobj_llava.geometry import Canvas, Placed, open_image
from trainers.epoch_order import sample_rng
from trainers.question_items import extras_of

logger = logging.getLogger(__name__)

BATCH = 8  # images per call of a detector
LISTED = 3  # images that a message names


class Finder:
    """Finds the objects of an item; passed to the loaders' workers.

    Args:
        options: Which backend, and which of its boxes count.
        canvas: Of the vision tower.
        device: Where a learned detector computes.
        work_dir: The run's folder.
    """

    def __init__(self, options: DetectorOptions, canvas: Canvas, *, device: str = "cpu", work_dir: str = ".") -> None:
        self.options = options
        self._canvas, self._device, self._work_dir = canvas, device, work_dir
        self._looks_up = options.backend in LOOKING_UP
        self._file = BoxesFile(options.file) if self._looks_up and options.file else None
        self._found: dict[str, Detections] = {}

    def __call__(self, item: Datum, placed: Placed, index: int) -> Detections:
        """Return the objects of an item.

        Args:
            item: With `boxes` in its extras.
            placed: Its image.
            index: In its split.
        Raises:
            ValueError: If there are no boxes for it and `DET.MISSING` is error.
        """
        if not self._looks_up:
            return self._detected(item.impath)
        found = filter_detections(self._look_up(item), self.options)
        if self.options.backend == "random":
            return random_like(found, placed.size, sample_rng(0, 0, index))
        return found

    def _look_up(self, item: Datum) -> Detections:
        known = extras_of(item)["boxes"]
        if known:  # "[]" says that there is no object, "" that nobody said
            return from_boxes(json.loads(known), item.impath)
        found = None if self._file is None else self._file.find(item.impath)
        if found is not None:
            return found
        if self.options.missing == "no_detection":
            return from_boxes([])
        raise ValueError(f"{item.impath}: the data set says nothing about objects, and {self._no_record()}")

    def _no_record(self) -> str:
        file = f"no record in {NODE}.FILE {self.options.file}" if self._file is not None else f"{NODE}.FILE is empty"
        return (
            f"{file}; expected one from scripts/bgobj_detect.py, another {NODE}.BACKEND, or {NODE}.MISSING no_detection"
        )

    def check(self, items: Iterable[Datum]) -> None:
        """Make sure, before hours are spent on the others, that boxes are known for every item, if they have to be.

        An image whose name stands in the side file is taken for known; the others are looked up by their bytes.

        Raises:
            ValueError: With the number of images without boxes, and the first of them.
        """
        if not self._looks_up or self.options.missing == "no_detection":
            return
        paths = list(dict.fromkeys(item.impath for item in items if not extras_of(item)["boxes"]))
        missing = [path for path in paths if self._file is None or not self._file.may_hold(path)]
        if missing:
            more = f" and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
            raise ValueError(
                f"{len(missing):,} images ({', '.join(missing[:LISTED])}{more}): the data set says nothing about objects, and "
                f"{self._no_record()}"
            )

    def _detected(self, impath: str) -> Detections:
        if self.options.backend == "none":
            return from_boxes([])
        if impath not in self._found:
            raise RuntimeError(f"{self.options.backend} has not looked at {impath}; `prepare` comes before its split is read")
        return self._found[impath]

    def prepare(self, items: Iterable[Datum]) -> None:
        """Let a detector that needs pixels look at every image of a split, in order; others need nothing.

        An image that cannot be decoded is passed over: whoever reads the split meets it as well, and decides.

        Raises:
            ValueError, ImportError, FileNotFoundError: As `build_detector`.
        """
        paths = list(dict.fromkeys(item.impath for item in items))
        if self._looks_up or self.options.backend == "none" or set(paths) <= self._found.keys():
            return
        started = time.perf_counter()
        detector = build_detector(self.options, self._canvas, device=self._device, work_dir=self._work_dir)
        for first in range(0, len(paths), BATCH):
            images = _read(paths[first : first + BATCH])
            self._found |= dict(zip(images, detector.detect(list(images.values())), strict=True))
        seen = [self._found[path] for path in paths if path in self._found]
        empty, seconds = sum(not len(found) for found in seen), time.perf_counter() - started
        logger.info("%s: %s images in %.1f s, %s without objects", self.options.backend, len(seen), seconds, empty)


def _read(paths: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Return the images that can be decoded, (h, w, 3), by path."""
    images = {}
    for path in paths:
        try:
            images[path] = np.asarray(open_image(path))
        except (ValueError, FileNotFoundError) as error:
            logger.warning("not looked at: %s", error)
    return images

"""What a detector returns, and what it is. Needs numpy only.

No detector runs inside a data loader: `scripts/bgobj_detect.py` writes its boxes beside the images, `boxes_file.py` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.geometry import Bools, check_boxes


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


def clip_detections(found: Detections, size: tuple[int, int]) -> Detections:
    """Clip boxes to an image of `size` (width, height); what lies outside, or has no area, is dropped."""
    limits = np.tile(np.asarray(size, dtype=np.float32), 2)
    boxes = np.clip(np.nan_to_num(found.boxes, nan=0.0), 0, limits)
    clipped = Detections(boxes, found.scores, found.labels, found.masks)
    return clipped.select((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def areas_of(boxes: NDArray) -> NDArray:
    """Areas of xyxy boxes (N, 4), (N,), px^2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def random_like(found: Detections, size: tuple[int, int], rng: np.random.Generator) -> Detections:
    """Move every box to a random place in an image of `size` (width, height): the control of equal sizes; masks are dropped."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    corners = rng.random(sides.shape) * np.maximum(np.asarray(size) - sides, 0)
    return Detections(np.concatenate([corners, corners + sides], axis=1).astype(np.float32), found.scores, found.labels)

"""Objects of a static camera: patches that differ from the empty scene."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.geometry import Bools, Canvas, Placed, dilate, open_image


class BackgroundSubtraction:
    """Compares each frame with a reference, patch by patch, on the canvas that the vision tower sees.

    Without a reference image, the reference is the median of the last frames; the first frame has none, hence no objects.

    Args:
        canvas: Of the vision tower.
        tau: Mean absolute difference above which a patch is an object, grey levels, [0, 255).
        n_frames: Frames that the median is taken of.
        reference: Image file of the empty scene; "" = the median.
    """

    weights_sha256 = ""

    def __init__(self, canvas: Canvas, *, tau: float, n_frames: int, reference: str = "") -> None:
        self.canvas, self.tau = canvas, tau
        self.reference = canvas.place(open_image(reference)).pixels if reference else None
        self.frames: deque[NDArray[np.uint8]] = deque(maxlen=n_frames)

    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Find what differs in frames (h, w, 3) of one camera, in their order; one detection per connected group of patches.

        Boxes and masks lie inside their patches, so that exactly these patches are found again on the canvas (on an original
        that is coarser than the patches, also their neighbours).
        """
        return [self._detect(self.canvas.place(Image.fromarray(image))) for image in images]

    def _detect(self, placed: Placed) -> Detections:
        reference = self._reference()
        if self.reference is None:
            self.frames.append(placed.pixels)
        if reference is None:
            return from_boxes([])
        changed = self._differences(placed.pixels, reference) > self.tau
        side = self.canvas.patch_px
        groups = [group.repeat(side, axis=0).repeat(side, axis=1) for group in connected_groups(changed)]
        masks = [mask for group in groups if (mask := _on_original(group, placed)).any()]
        if not masks:
            return from_boxes([])
        found = from_boxes([_bounding_box(mask) for mask in masks])
        return Detections(found.boxes, found.scores, ["change"] * len(masks), np.array(masks))

    def _reference(self) -> NDArray | None:
        if self.reference is not None or not self.frames:
            return self.reference
        return np.median(np.stack(self.frames), axis=0)

    def _differences(self, pixels: NDArray[np.uint8], reference: NDArray) -> NDArray[np.float64]:
        """Mean absolute difference per patch, (G, G), grey levels."""
        grid, side = self.canvas.grid, self.canvas.patch_px
        differences = np.abs(pixels.astype(np.float32) - reference.astype(np.float32))
        return differences.reshape(grid, side, grid, side, 3).mean(axis=(1, 3, 4))


def connected_groups(mask: Bools) -> list[Bools]:
    """Split a mask (rows, columns) into groups of cells that touch by edge or corner, by their first cell in raster order."""
    groups, left = [], mask.copy()
    while left.any():
        group = np.zeros_like(mask)
        group.flat[left.argmax()] = True
        while (grown := dilate(group, 1) & mask).sum() > group.sum():
            group = grown
        groups.append(group)
        left &= ~group
    return groups


def _on_original(group: Bools, placed: Placed) -> Bools:
    """Map a group (S, S) to the original (h, w): inside its patches, where its pixels are small enough."""
    inside = placed.mask_to_original(group)
    if inside.any():
        return inside
    left, top, right, bottom = placed.to_original([_bounding_box(group)])[0]
    touched = np.zeros_like(inside)
    touched[max(int(top), 0) : max(math.ceil(bottom), 0), max(int(left), 0) : max(math.ceil(right), 0)] = True
    return touched


def _bounding_box(mask: Bools) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1

"""Mask augmentation: in training, detections are as imperfect as they will be in use. Nothing here reads a global generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.geometry import MaskPolicy

SPURIOUS_SHARE = (0.1, 0.5)  # sides of a spurious box as a share of the image's


@dataclass(frozen=True)
class MaskAugment:
    """How training disturbs what the detector found (`TRAINER.BGOBJLLAVA.AUG`).

    Attributes:
        dilate_max: Objects grow by a random 0 to this many patches, instead of the policy's own number; 0 = always its own.
        spurious_p: Probability per image of one more box.
        drop_p: Probability per box of being missed.
        p_full: Probability per image of stock order, without a split.
        bg_jitter: Standard deviation of the noise on background patches, grey levels 0-255.
    """

    dilate_max: int = 2
    spurious_p: float = 0.1
    drop_p: float = 0.1
    p_full: float = 0.1
    bg_jitter: float = 0.0

    def disturb(self, found: Detections, size: tuple[int, int], rng: np.random.Generator) -> Detections:
        """Return detections of which some are missing, and perhaps a spurious one.

        Args:
            found: Boxes in original pixels.
            size: Width and height of the original, pixels.
            rng: Of this sample.
        """
        # Every number is drawn whatever the data, so that one choice never moves the next.
        kept = rng.random(len(found.boxes)) >= self.drop_p
        spurious, box = rng.random() < self.spurious_p, _random_box(size, rng)
        boxes, scores = found.boxes[kept], found.scores[kept]
        labels = [label for label, keep in zip(found.labels, kept, strict=True) if keep]
        masks = None if found.masks is None else found.masks[kept]
        if not spurious:
            return Detections(boxes, scores, labels, masks)
        if masks is not None:
            masks = np.concatenate([masks, _mask_of(box, size)[None]])
        return Detections(
            np.concatenate([boxes, box[None]]), np.append(scores, np.float32(1)), [*labels, "spurious"], masks
        )  # fmt: skip

    def grow(self, policy: MaskPolicy, rng: np.random.Generator) -> MaskPolicy:
        """Return the policy with a random dilation."""
        if not self.dilate_max:
            return policy
        return replace(policy, dilate=int(rng.integers(self.dilate_max + 1)))

    def is_full(self, rng: np.random.Generator) -> bool:
        """Whether this image is read in stock order."""
        return bool(rng.random() < self.p_full)

    def jitter(self, pixels: NDArray[np.uint8], background: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return pixels (S, S, 3) with noise on the background patches (P,); the same array if there is none."""
        if not self.bg_jitter:
            return pixels
        side, grid = len(pixels), int(len(background) ** 0.5)
        where = background.reshape(grid, grid).repeat(side // grid, axis=0).repeat(side // grid, axis=1)
        noise = rng.normal(scale=self.bg_jitter, size=pixels.shape)
        noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
        return np.where(where[..., None], noisy, pixels)


def _random_box(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a box (4,), xyxy, inside an image of `size` (width, height)."""
    sides = rng.uniform(*SPURIOUS_SHARE, size=2) * size
    corner = rng.random(2) * (size - sides)
    return np.concatenate([corner, corner + sides]).astype(np.float32)


def _mask_of(box: NDArray, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size[::-1], dtype=bool)
    left, top, right, bottom = np.rint(box).astype(int)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask

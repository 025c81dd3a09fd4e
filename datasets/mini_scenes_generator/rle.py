"""Masks as run lengths in COCO's order: down the columns, first the number of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask, (H, W) bool, as ``{"size": [H, W], "counts": [...]}``."""
    pixels = mask.ravel(order="F")
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate(([0], borders, [pixels.size])))
    return {"size": list(mask.shape), "counts": ([0] if pixels[0] else []) + counts.tolist()}


def decode_mask(code: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Return the mask, (H, W) bool.

    Raises:
        ValueError: If the runs do not fill the size.
    """
    height, width = code["size"]
    counts = np.asarray(code["counts"], dtype=np.int64)
    if counts.sum() != height * width or (counts < 0).any():
        raise ValueError(f"mask runs sum to {counts.sum()}; expected {height} x {width} = {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")

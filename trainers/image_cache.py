"""Decoded images in memory that all loader workers share (`CACHE_IMAGES ram`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from dassl.utils import read_image
from PIL import Image

logger = logging.getLogger(__name__)


class ImageCache:
    """Decode every file once into one shared uint8 block; later reads cost a copy.

    Images whose shorter side is longer than `side_px` are reduced to it (bicubic) before they are stored.

    Args:
        paths: All files that may be asked for; doubles are stored once.
        side_px: Longest allowed shorter side.
        max_gb: Limit in units of 10^9 bytes.
        read: Reader of a file, returns an RGB image.
    Raises:
        ValueError: If the estimate is above `max_gb`.
    """

    def __init__(
        self, paths: Sequence[str], *, side_px: int, max_gb: float, read: Callable[[str], Image.Image] = read_image
    ) -> None:
        unique = list(dict.fromkeys(paths))
        self._read = read
        self._slots = {path: slot for slot, path in enumerate(unique)}
        self._sizes = [_reduced_size(path, side_px) for path in unique]
        offsets = [0]
        for width, height in self._sizes:
            offsets.append(offsets[-1] + 3 * width * height)
        self._offsets = offsets
        self._check_size(len(unique), offsets[-1], max_gb)
        # Shared memory: what one worker decodes, all of them see, also after the workers of an epoch are gone.
        self._pixels = torch.empty(offsets[-1], dtype=torch.uint8).share_memory_()
        self._filled = torch.zeros(len(unique), dtype=torch.uint8).share_memory_()

    @staticmethod
    def _check_size(count: int, size_bytes: int, max_gb: float) -> None:
        size_gb = size_bytes / 1e9
        logger.info("Image cache: %d images, %.3f GB of memory", count, size_gb)
        if size_gb > max_gb:
            raise ValueError(
                f"CACHE_IMAGES ram would need {size_gb:.3f} GB, CACHE_MAX_GB is {max_gb}; raise it, or lower CACHE_SIDE"
            )

    @property
    def size_bytes(self) -> int:
        """Bytes of the shared pixel block."""
        return self._offsets[-1]

    def __call__(self, path: str) -> Image.Image:
        """Return the image at `path` in RGB, decoding it if this is the first request."""
        slot = self._slots[path]
        pixels = self._pixels[self._offsets[slot] : self._offsets[slot + 1]].numpy()
        size = self._sizes[slot]
        if not self._filled[slot]:
            image = self._read(path)
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            pixels[:] = np.frombuffer(image.tobytes(), dtype=np.uint8)
            self._filled[slot] = 1
        return Image.frombytes("RGB", size, pixels.tobytes())


def _reduced_size(path: str, side_px: int) -> tuple[int, int]:
    """Return (width, height) in the cache; reads the file's header only."""
    with Image.open(path) as image:
        width, height = image.size
    shorter = min(width, height)
    if shorter <= side_px:
        return width, height
    return max(1, round(width * side_px / shorter)), max(1, round(height * side_px / shorter))

"""Scenes and payloads for the tests of the cache: no model is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.options import CacheOptions, Hit
from trainers.bgobj_llava.cache.scene import CacheRequest

Pairs = dict[str, list[tuple[Tensor, Tensor]]]
GRID, PATCH, WIDTH = 6, 4, 8
CONTEXT, OTHER = "c" * 64, "d" * 64
KIB = 1 / 2**20  # in GiB


def background(seed: int, *, grid: int = GRID, patch: int = PATCH) -> np.ndarray:
    """Random texture, (S, S, 3), uint8."""
    side = grid * patch
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def mask(*patches: int, grid: int = GRID) -> np.ndarray:
    """Patch mask with these raster numbers, (P,), bool."""
    result = np.zeros(grid * grid, dtype=bool)
    result[list(patches)] = True
    return result


def request(
    pixels: np.ndarray, raw: tuple[int, ...] = (0,), objects: tuple[int, ...] | None = None, stream_id: str = ""
) -> CacheRequest:
    """Request with boxes on the patches `raw`, grown to `objects` (None: not grown)."""
    grid = pixels.shape[0] // PATCH
    return CacheRequest(pixels, mask(*raw, grid=grid), mask(*(raw if objects is None else objects), grid=grid), stream_id)


def paint(pixels: np.ndarray, patch_number: int, seed: int, *, patch: int = PATCH) -> np.ndarray:
    """Copy with one patch filled with another texture."""
    grid = pixels.shape[0] // patch
    row, column = divmod(patch_number, grid)
    copy = pixels.copy()
    texture = np.random.default_rng(seed).integers(0, 256, (patch, patch, 3), dtype=np.uint8)
    copy[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = texture
    return copy


def payload(count: int, seed: int = 0, layers: int = 2, prefix: int = 3) -> tuple[Tensor, Pairs]:
    """Tokens (count, d), and keys and values of `prefix` text rows and the background."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stack = [(random(1, 2, prefix + count, 4), random(1, 2, prefix + count, 4)) for _ in range(layers)]
    return random(count, WIDTH), {"llm": stack, "fusion": []}


def store(cache: BackgroundCache, asked: CacheRequest, seed: int = 0, context: str = CONTEXT) -> str | None:
    """Store a request's background with a random payload; returns the key."""
    entry = cache.store(asked, context, *payload(int((~asked.objects).sum()), seed))
    return None if entry is None else entry.key


def open_cache(**options: object) -> BackgroundCache:
    """Return a cache that is at work in `CONTEXT`."""
    cache = BackgroundCache(replace(CacheOptions(), **options))
    cache.new_context(CONTEXT)
    return cache


def ask(cache: BackgroundCache, asked: CacheRequest, context: str = CONTEXT) -> str:
    """Look up and release; returns the key of the hit or the reason of the miss."""
    result = cache.look_up(asked, context)
    if isinstance(result, Hit):
        result.release()
        return result.entry.key
    return result.reason

"""A request as the cache sees it: pixels cut into patches, their codes and colours. Needs numpy only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache.entry import Entry, Facts, Payload
from trainers.bgobj_llava.cache.key import entry_key

N_ANCHORS = 4  # patches by which an entry is found
CELLS = 8  # per side, for colours
_WORD = np.dtype("<u4")  # codes do not depend on the machine


@dataclass(frozen=True, eq=False)
class CacheRequest:
    """An image whose background may be known.

    Attributes:
        pixels: What the tower sees before normalisation (`U`), RGB, (S, S, 3), uint8.
        raw: Patches that boxes cover (`O_raw`), (P,), bool.
        objects: The canonical object mask, (P,), bool; its complement is the background B.
        stream_id: Requests of one camera or call share it: the entry of the previous one is tried first; "" = none.
    Raises:
        ValueError: If the masks do not fit the pixels.
    """

    pixels: NDArray[np.uint8]
    raw: NDArray[np.bool_]
    objects: NDArray[np.bool_]
    stream_id: str = ""

    def __post_init__(self) -> None:
        grid, side = math.isqrt(len(self.raw)), self.pixels.shape[0]
        square = grid * grid == len(self.raw) == len(self.objects) and grid > 0 and side % grid == 0
        if not square or self.pixels.shape != (side, side, 3) or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels {self.pixels.dtype} {self.pixels.shape}, masks of {len(self.raw)} and {len(self.objects)} patches; "
                "expected uint8 (S, S, 3) and two masks of G * G patches, G dividing S"
            )


class Scene:
    """The patches of a request, each worked out when it is asked for.

    Attributes:
        raw: Patches that boxes cover, (P,), bool.
        background: The request's own background B, (P,), bool.
        stream_id: Of the request.
    """

    def __init__(self, request: CacheRequest) -> None:
        self.raw = np.asarray(request.raw, dtype=bool)
        self.background = ~np.asarray(request.objects, dtype=bool)
        self.stream_id = request.stream_id
        self._pixels = request.pixels

    @cached_property
    def rows(self) -> NDArray[np.uint8]:
        """Pixels of every patch in raster order, (P, 3 * p * p)."""
        grid = math.isqrt(len(self.raw))
        patch = self._pixels.shape[0] // grid
        cut = self._pixels.reshape(grid, patch, grid, patch * 3).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(cut).reshape(grid * grid, -1)

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """Checksum of every patch together with its place, (P,). A patch that differs in one byte has another code."""
        rows = self.rows
        if rows.shape[1] % _WORD.itemsize:
            rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _WORD.itemsize)))
        words = rows.view(_WORD).astype(np.uint64)
        return words @ _weights(words.shape[1]) + np.arange(len(words), dtype=np.uint64) * _weights(1)[0]

    @cached_property
    def anchor_codes(self) -> list[int]:
        """`codes` as Python's integers."""
        return self.codes.tolist()

    def total(self, index: NDArray[np.int64]) -> int:
        """Sum of the codes of some patches, modulo 2^64."""
        return int(self.codes[index].sum(dtype=np.uint64))

    def anchors(self) -> tuple[int, ...]:
        """Codes of the background's patches of highest variance, at most four."""
        index = np.flatnonzero(self.background)
        variance = self.rows[index].astype(np.float32).var(axis=1)
        best = np.argsort(-variance, kind="stable")[:N_ANCHORS]
        return tuple(int(code) for code in self.codes[index[best]])

    @cached_property
    def colours(self) -> NDArray[np.float32]:
        """Mean background colours of 8 x 8 cells, as a vector of unit length, (192,).

        A cell without background has the mean colour of the whole background.
        """
        grid = math.isqrt(len(self.raw))
        n_pixels = self.rows.shape[1] // 3
        means = self.rows.astype(np.float32) @ np.tile(np.eye(3, dtype=np.float32), (n_pixels, 1)) / n_pixels  # (P, 3)
        number = np.arange(grid) * CELLS // grid
        cell = (number[:, None] * CELLS + number[None, :]).reshape(-1)[self.background]
        own = means[self.background]
        sums = np.stack([np.bincount(cell, weights=channel, minlength=CELLS * CELLS) for channel in own.T], axis=1)
        counts = np.bincount(cell, minlength=CELLS * CELLS)[:, None]
        filled = np.where(counts > 0, sums / np.maximum(counts, 1), own.mean(axis=0)).reshape(-1)
        return (filled / max(float(np.linalg.norm(filled)), 1e-12)).astype(np.float32)

    def entry(self, context: str, payload: Payload) -> Entry:
        """Make an entry of the request's own background."""
        index = np.flatnonzero(self.background)
        rows = self.rows[index]
        key = entry_key(context, self.background, rows)
        return Entry(Facts(key, context, self.background, self.anchors(), self.total(index), self.colours), rows, payload)

    def key(self, context: str) -> str:
        """Key of the request's own background."""
        return entry_key(context, self.background, self.rows[np.flatnonzero(self.background)])


@lru_cache(maxsize=8)
def _weights(count: int) -> NDArray[np.uint64]:
    """Fixed odd 64-bit numbers: a word that changes always changes its product, and sums of products hardly ever agree."""
    numbers = [int.from_bytes(hashlib.sha256(f"patch word {each}".encode()).digest()[:8], "big") | 1 for each in range(count)]
    return np.array(numbers, dtype=np.uint64)

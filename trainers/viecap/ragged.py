"""Rows of different length, end to end in one array: captions, their nouns, their prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Ragged", "from_rows", "gather", "join_rows", "offsets_of"]


class Ragged(NamedTuple):
    """Rows of different length, end to end: row i is `flat[offset[i]:offset[i + 1]]`.

    Attributes:
        flat: Values, (M,), int32.
        offset: Where rows begin, (N + 1,), int64; the last one is M.
    """

    flat: np.ndarray
    offset: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Values in each row, (N,), int64."""
        return np.diff(self.offset)

    @property
    def row(self) -> np.ndarray:
        """Row of each value, (M,), int64."""
        return np.repeat(np.arange(len(self.offset) - 1), self.lengths)

    def take(self, rows: np.ndarray) -> Ragged:
        """Return these rows, in this order."""
        return gather(self.flat, self.offset[:-1][rows], self.lengths[rows])

    def where(self, kept: np.ndarray) -> Ragged:
        """Return the rows with the values for which `kept`, (M,), bool, is true."""
        return from_rows(self.flat[kept], self.row[kept], len(self.offset) - 1)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where rows of these lengths begin, (N + 1,), int64; the last one is where all end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def gather(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
    """Return segments of an array as rows.

    Args:
        flat: The array.
        starts: Where the segments begin, (N,).
        lengths: Their lengths, (N,).
    """
    offset = offsets_of(lengths)
    return Ragged(flat[_places(starts, offset)], offset)


def from_rows(flat: np.ndarray, row: np.ndarray, n_rows: int) -> Ragged:
    """Make rows of values.

    Args:
        flat: Values, sorted by row.
        row: Row of each value.
        n_rows: Rows there are, empty ones included.
    """
    return Ragged(flat.astype(np.int32, copy=False), offsets_of(np.bincount(row, minlength=n_rows)))


def join_rows(left: Ragged, right: Ragged) -> Ragged:
    """Return each row of `left` with the same row of `right` behind it."""
    offset = left.offset + right.offset
    flat = np.empty(offset[-1], dtype=np.int32)
    flat[_places(offset[:-1], left.offset)] = left.flat
    flat[_places(offset[:-1] + left.lengths, right.offset)] = right.flat
    return Ragged(flat, offset)


def _places(starts: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... of each segment, one segment after the other; `offset` holds their lengths."""
    return np.repeat(starts - offset[:-1], np.diff(offset)) + np.arange(offset[-1])

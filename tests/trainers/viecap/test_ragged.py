"""Rows of different length in one array."""

from __future__ import annotations

import numpy as np

from trainers.viecap.ragged import Ragged, from_rows, gather, join_rows, offsets_of


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged.flat[start:end].tolist() for start, end in zip(ragged.offset[:-1], ragged.offset[1:], strict=True)]


def test_segments_become_rows() -> None:
    found = gather(np.arange(20), np.array([4, 0, 9]), np.array([2, 0, 3]))
    assert rows_of(found) == [[4, 5], [], [9, 10, 11]] and found.lengths.tolist() == [2, 0, 3]
    assert rows_of(gather(np.arange(3), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))) == []


def test_rows_are_taken_joined_and_filtered() -> None:
    left = from_rows(np.array([1, 2, 3]), np.array([0, 0, 2]), 3)
    right = Ragged(np.array([7, 8], dtype=np.int32), offsets_of(np.array([1, 1, 0])))
    assert rows_of(left) == [[1, 2], [], [3]] and left.row.tolist() == [0, 0, 2]
    assert rows_of(join_rows(left, right)) == [[1, 2, 7], [8], [3]]
    assert rows_of(left.take(np.array([2, 0]))) == [[3], [1, 2]]
    assert rows_of(left.where(np.array([False, True, True]))) == [[2], [], [3]]

"""How often each n-gram occurs in each of many texts, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

Tokens = Sequence[str]


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one length in all texts; one row per n-gram of a text, sorted by text, then by n-gram.

    Attributes:
        text: Index of the text, (M,), int64.
        gram: Number of the n-gram, equal for equal n-grams of all texts, (M,), int64.
        count: How often it occurs in the text, (M,), int64.
        n_grams: Number of different n-grams.
    """

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    n_grams: int

    def sum_by_text(self, values: np.ndarray, n_texts: int) -> np.ndarray:
        """Return the sum of the rows' values, (M,), for every text, (n_texts,)."""
        return np.bincount(self.text, values, minlength=n_texts)


def count_ngrams(texts: Sequence[Tokens], longest: int) -> Iterator[NgramCounts]:
    """Yield the counts of the n-grams of 1, 2, ... `longest` tokens in each text."""
    lengths = np.array([len(text) for text in texts], np.int64)
    numbers: dict[str, int] = {}
    words = np.fromiter((numbers.setdefault(word, len(numbers)) for word in chain.from_iterable(texts)), np.int64)
    owner, end = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    first, gram, n_grams = np.arange(len(words)), words, len(numbers)
    for n in range(1, longest + 1):
        if n > 1:
            fits = first + n <= end[first]
            first = first[fits]
            # An n-gram is its first n - 1 words, already numbered, and one more.
            distinct, gram = np.unique(gram[fits] * len(numbers) + words[first + n - 1], return_inverse=True)
            n_grams = len(distinct)
        rows, count = np.unique(owner[first] * max(n_grams, 1) + gram, return_counts=True)
        yield NgramCounts(rows // max(n_grams, 1), rows % max(n_grams, 1), count, n_grams)

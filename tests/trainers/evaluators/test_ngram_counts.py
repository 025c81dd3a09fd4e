"""Counting the n-grams of many texts at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
from reference_captions import grams

from trainers.evaluators.ngram_counts import count_ngrams

TEXTS = ["a b a b a".split(), [], ["a"], "b a c".split(), "a b a b a".split()]


def test_counts_are_those_of_each_text_and_equal_ngrams_share_a_number() -> None:
    for n, counts in enumerate(count_ngrams(TEXTS, 4), 1):
        expected = [Counter(grams(text, n)) for text in TEXTS]
        assert len(counts.text) == sum(map(len, expected))
        assert counts.n_grams == len(set().union(*expected))
        assert np.all(np.diff(counts.text * 100 + counts.gram) > 0), "sorted by text, then by n-gram"
        for text, wanted in enumerate(expected):
            rows = counts.text == text
            assert sorted(counts.count[rows]) == sorted(wanted.values())
        twins = [counts.gram[counts.text == text].tolist() for text in (0, 4)]
        assert twins[0] == twins[1]


def test_an_ngram_never_spans_two_texts() -> None:
    bigrams = list(count_ngrams([["a"], ["b"], ["a", "b"]], 2))[1]
    assert (bigrams.text.tolist(), bigrams.count.tolist()) == ([2], [1])


def test_texts_without_words_have_no_ngrams() -> None:
    assert [len(counts.text) for counts in count_ngrams([[], []], 4)] == [0, 0, 0, 0]


def test_values_are_summed_by_text() -> None:
    words = next(count_ngrams(TEXTS, 1))
    assert words.sum_by_text(words.count, len(TEXTS)).tolist() == [5, 0, 1, 3, 5]

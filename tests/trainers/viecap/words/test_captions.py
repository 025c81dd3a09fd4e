"""The caption normaliser."""

from __future__ import annotations

import string

import pytest

from trainers.viecap.words.captions import normalise_caption


@pytest.mark.parametrize(
    "text, expected",
    [
        (" a man surfing ", "A man surfing."),
        ("A BOY IS PLAYING.", "A boy is playing."),
        ("what is this?", "What is this?"),
        ("a DVD player", "A DVD player."),  # not all upper case
        ("THE END", "The end."),
        ("été à la plage\n", "Été à la plage."),
        ("2 dogs", "2 dogs."),
        ("he says «hi»", "He says «hi»."),  # the mark is not ASCII
        ("\t \n", ""),
        ("x", "X."),
    ],
)
def test_normalise_caption_in_the_documented_order(text: str, expected: str) -> None:
    assert normalise_caption(text) == expected
    assert normalise_caption(expected) == expected


@pytest.mark.parametrize("mark", string.punctuation)
def test_every_ascii_punctuation_mark_ends_a_caption(mark: str) -> None:
    assert normalise_caption(f"a dog{mark}") == f"A dog{mark}"

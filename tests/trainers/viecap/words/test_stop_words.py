"""The words that are never an entity."""

from __future__ import annotations

import string

import pytest
from caption_data import coco_captions, data_file

from trainers.viecap.words.entities import NounMap, effective_entities
from trainers.viecap.words.extractors import build_extractor
from trainers.viecap.words.stop_words import stop_words
from trainers.viecap.words.vocabularies import read_filter


def test_stop_words_are_the_three_lists_merged() -> None:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    pictures = {"photo", "image", "picture", "pic", "side", "part", "background"}
    assert len(ENGLISH_STOP_WORDS) == 318 and len(string.punctuation) == 32
    assert stop_words() == ENGLISH_STOP_WORDS | set(string.punctuation) | pictures
    # Two words of pictures are in scikit-learn's list as well.
    assert len(stop_words()) == 318 + 32 + 7 - 2


@pytest.mark.data
def test_effective_entities_differ_from_those_of_the_longer_list_by_two_in_ten_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longer = frozenset(data_file("stop_words.txt").read_text("utf-8").split("\n")) - {""}
    words = read_filter("visual_genome_entities", data_file("visual_genome_entities.json"))
    extractor, noun_map = build_extractor("textblob"), NounMap(words)
    nouns = [extractor.nouns(caption) for caption in coco_captions(50_000)]
    ours = [effective_entities(row, noun_map, 10) for row in nouns]
    monkeypatch.setattr("trainers.viecap.words.entities.stop_words", lambda: longer)
    theirs = [effective_entities(row, noun_map, 10) for row in nouns]
    differing = sum(len({*one} ^ {*other}) for one, other in zip(ours, theirs, strict=True))
    assert differing <= 0.0002 * sum(map(len, theirs))

"""From the nouns of one caption to its entities."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.viecap.words.entities import PERSON, NounMap, effective_entities, mask_and_merge
from trainers.viecap.words.vocabularies import read_shipped

PARK = NounMap(frozenset({"dog", "park"}))
NOUNS = ["man", "dog", "xyzzy", "photo", "women", "park"]  # the example of the documentation


def test_nouns_are_filtered_and_people_become_person() -> None:
    assert effective_entities(NOUNS, PARK, 10) == [PERSON, "dog", PERSON, "park"]


def test_duplicates_merge_into_one_entity() -> None:
    names = effective_entities(NOUNS, PARK, 10)
    assert mask_and_merge(names, [True] * 4) == [PERSON, "dog", "park"]
    assert mask_and_merge(names, [False, True, True, True]) == ["dog", PERSON, "park"]
    assert mask_and_merge(names, [False, True, False, False]) == ["dog"]
    assert mask_and_merge([], []) == []


def test_person_of_two_nouns_survives_with_one_minus_p_squared() -> None:
    names, draws = effective_entities(NOUNS, PARK, 10), 20_000
    kept = np.random.default_rng(0).random((draws, len(names))) >= 0.4
    share = sum(PERSON in mask_and_merge(names, row.tolist()) for row in kept) / draws
    assert share == pytest.approx(0.84, abs=0.01)


def test_first_nouns_are_counted_before_the_filter() -> None:
    assert effective_entities(NOUNS, PARK, 3) == [PERSON, "dog"]
    assert effective_entities(NOUNS, PARK, 1) == [PERSON]


def test_people_need_no_place_in_the_vocabulary_and_are_the_documented_eighteen() -> None:
    words = "people person man men woman women adult boy girl kid children child baby guy player male female worker".split()
    assert read_shipped("people") == tuple(sorted(words)) and len(words) == 18
    assert {NounMap(frozenset()).map(word) for word in words} == {PERSON}
    assert NounMap(frozenset()).map("surfer") is None


@pytest.mark.parametrize("noun", ["x", "photo", "side", "the", "%"])
def test_short_words_and_stop_words_are_dropped_whatever_the_vocabulary(noun: str) -> None:
    assert NounMap(frozenset({noun})).map(noun) is None and NounMap(None).map(noun) is None


def test_without_a_vocabulary_every_other_noun_stays() -> None:
    assert NounMap(None).map("xyzzy") == "xyzzy" and NounMap(None).map("digit eight") == "digit eight"

"""Short answers against references: golden cases, and the same results as slow versions written from the definitions."""

from __future__ import annotations

import random

import pytest
import reference_vqa as naive

from trainers.evaluators import vqa_text
from trainers.evaluators.vqa_text import (
    anls,
    count_edits,
    exact_match,
    normalise_answer,
    read_number,
    relaxed_match,
    token_f1,
    vqa_accuracy,
    yes_or_no,
)

PIECES = "a the dog Dog. two none 10,000 3.5 .5 dont can't cant it's - , ! red,blue t-shirt U.S. \"yes\" (no) 9:15 $5 5% é"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Dog.", "dog"), ("two", "2"), ("none", "0"), ("10,000", "10000"), ("dont", "don't"), ("don't", "don't"),
        ("ten past ten", "10 past 10"), ("an owl and a hat", "owl and hat"), ("t-shirt", "t shirt"), ("red, blue", "red blue"),
        ("red,blue", "red blue"), ("3.5", "3.5"), ("3.", "3"), ("U.S.A.", "usa"), ("9:15", "9:15"), ("$5 (five)", "$5 5"),
        ("What?!", "what"), ("eleven", "eleven"), ("wouldntve", "wouldn't've"), ("don\u2019t", "don't"), ("its", "its"),
        ("nine oclock", "9 o'clock"), ("A", "a"), ("The", "the"), ("?", "?"), ("", ""), (" \n ", ""),
        ("tab\tand\nline", "tab and line"),
    ],
)  # fmt: skip
def test_normalisation_has_the_stated_values(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_normalisation_equals_the_letter_by_letter_version() -> None:
    rng = random.Random(0)
    contractions = {**vqa_text.APOSTROPHES, **{word: word for word in vqa_text.APOSTROPHES.values()}}
    for _ in range(2000):
        text = "".join(rng.choice(PIECES.split()) + rng.choice(["", " ", "  ", "\n"]) for _ in range(rng.randint(1, 5)))
        assert normalise_answer(text) == naive.normalise(text, contractions), repr(text)


def test_no_word_of_its_own_is_taken_for_a_contraction() -> None:
    words = "were well hell shell shed wed ill id its whore cant".split()
    assert [word for word in words if word in vqa_text.APOSTROPHES] == ["cant"]  # as in the official list
    assert all(word.replace("'", "") == bare for bare, word in vqa_text.APOSTROPHES.items())


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_references_has_the_stated_values(matches: int, expected: float) -> None:
    assert vqa_accuracy("Yes.", ["yes"] * matches + ["no"] * (10 - matches)) == pytest.approx(expected, abs=1e-12)


def test_vqa_accuracy_is_the_mean_over_sets_that_lack_one_reference() -> None:
    rng = random.Random(1)
    for count in range(1, 12):
        for _ in range(5):
            matches = [rng.random() < 0.4 for _ in range(count)]
            found = vqa_accuracy("x", ["x" if match else f"y{n}" for n, match in enumerate(matches)])
            assert found == pytest.approx(float(naive.leave_one_out(matches)), abs=1e-12)


def test_one_reference_makes_vqa_accuracy_the_exact_match() -> None:
    assert [vqa_accuracy(text, ["The Dog"]) for text in ("dog", "dogs")] == [1.0, 0.0]
    assert [exact_match(text, ["cat", "dog"]) for text in ("A dog!", "owl")] == [1.0, 0.0]


def test_token_f1_is_that_of_the_best_reference() -> None:
    assert token_f1("night", ["starry night"]) == pytest.approx(2 / 3)
    assert token_f1("the starry night", ["noon", "Starry night."]) == 1.0
    assert token_f1("", ["x"]) == 0.0 and token_f1("red red blue", ["red blue blue"]) == pytest.approx(2 / 3)
    rng = random.Random(2)
    for _ in range(200):
        words, expected = ([rng.choice("bcd") for _ in range(rng.randint(1, 5))] for _ in range(2))
        assert token_f1(" ".join(words), [" ".join(expected)]) == pytest.approx(float(naive.f1(words, expected)))


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("hallo", ["hello"], 0.8), ("Hello  ", ["hello"], 1.0), ("hexyz", ["hello"], 0.0), ("ab", ["abcd"], 0.0),
        ("abc", ["abcde"], 0.6), ("cat", ["dog", "cut"], 2 / 3), ("", ["x"], 0.0), ("the dog", ["dog"], 0.0),
    ],
)  # fmt: skip
def test_anls_has_the_stated_values(answer: str, references: list[str], expected: float) -> None:
    assert anls(answer, references) == pytest.approx(expected)


def test_edits_equal_the_recursive_definition() -> None:
    rng = random.Random(3)
    for _ in range(150):
        text, other = ("".join(rng.choice("abc") for _ in range(rng.randint(0, 6))) for _ in range(2))
        assert count_edits(text, other) == naive.edits(text, other)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("105", "100", 1), ("105.1", "100", 0), ("95", "100", 1), ("-95", "-100", 1), ("95", "-100", 0), ("1,050", "1000", 1),
        ("10.4 %", "0.1", 1), ("10.6%", "0.1", 0), ("0", "0", 1), ("0.01", "0", 0), ("100.", "100", 1), ("nan", "1", 0),
        ("2e3", "2000", 1), ("1_0", "10", 0), ("the Red", "red", 1), ("blue", "red", 0), ("100", "red", 0), ("two", "2", 1),
    ],
)  # fmt: skip
def test_relaxed_match_allows_five_percent_of_numbers(answer: str, reference: str, expected: float) -> None:
    assert relaxed_match(answer, [reference]) == expected


def test_relaxed_match_takes_any_reference() -> None:
    assert relaxed_match("9", ["red", "100", "9.3"]) == 1.0


@pytest.mark.parametrize(
    ("text", "value"), [("-1,250.5", -1250.5), (" 12 % ", 0.12), (".5", 0.5), ("1,2", None), ("inf", None), ("", None)]
)
def test_numbers_are_read_as_people_write_them(text: str, value: float | None) -> None:
    assert read_number(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(("text", "word"), [("Yes, it is.", "yes"), ("NO", "no"), ("not", ""), ("", ""), ("well yes", "")])
def test_yes_and_no_are_first_words(text: str, word: str) -> None:
    assert yes_or_no(text) == word

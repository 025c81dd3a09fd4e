"""What is learned from is not tested on; several items may ask about one image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from dassl.data.datasets import Datum

from trainers.split_checks import find_split_problems


class Question(Datum):
    """An item that is answered rather than labelled."""

    answers: tuple[str, ...] = ("yes",)


@pytest.fixture
def make_data(tmp_path: Path):
    """Return `make(train="ab", val="c", test="d", **attributes)`: one question per letter, which names its image."""

    def ask(letters: str | None) -> list[Question] | None:
        if letters is None:
            return None
        for letter in letters:
            (tmp_path / letter).touch()
        return [Question(impath=str(tmp_path / letter)) for letter in letters]

    def make(train: str = "ab", val: str | None = "c", test: str = "d", **attributes):
        return SimpleNamespace(train_x=ask(train), val=ask(val), test=ask(test), **attributes)

    return make


def has_answer(item: Question) -> bool:
    return bool(item.answers)


def find(data, *, needs_val: bool = False) -> list[str]:
    return find_split_problems(data, has_answer, needs_val=needs_val)


def test_images_of_the_test_part_are_counted_once_each(make_data) -> None:
    assert find(make_data("ab", "c", "d")) == []
    problems = find(make_data("abdddee", "cd", "dddee"))
    assert [problem.split(", e.g.")[0] for problem in problems] == [
        "2 labelled image(s) are in both train and test",
        "1 labelled image(s) are in both val and test",
    ]


def test_unanswered_items_may_be_in_both(make_data) -> None:
    data = make_data("ad", None, "d")
    data.train_x[1].answers = ()
    assert find(data) == []


def test_a_validation_part_that_stands_for_the_test_part_is_no_leak_to_it(make_data) -> None:
    assert find(make_data("ab", "cd", "cd", split_kind="val as test"), needs_val=True) == []
    assert len(find(make_data("abc", "cd", "cd", split_kind="val as test"))) == 1
    assert len(find(make_data("ab", "cd", "cd", split_kind="given"))) == 1


def test_there_is_nothing_to_learn_in_tests_only(make_data) -> None:
    (problem,) = find(make_data("d", None, "d", split_kind="tests only"))
    assert problem.startswith("the data set has no train part")


@pytest.mark.parametrize("val", [None, "", "c"])
def test_choosing_on_val_needs_answers_there(val: str | None, make_data) -> None:
    data = make_data(val=val)
    for item in data.val or []:
        item.answers = ()
    assert find(data) == []
    (problem,) = find(data, needs_val=True)
    assert "TEST.FINAL_MODEL is 'best_val', but the data set has no val split with labels" in problem

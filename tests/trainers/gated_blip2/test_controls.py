"""Controls of a test: what is measured, against what, and what it is called."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from trainers.gated_blip2.controls import accuracy_of, majority_accuracy, majority_answers, measure, style_gap


def item(kind: str, *answers: str) -> Any:
    return SimpleNamespace(extras={"question": "what?", "answers": json.dumps(answers), "question_type": kind})


COLOURS = [item("colour", answer) for answer in ("red", "Red", "blue")]
TRAIN = [*COLOURS, item("count", "2"), item("count", "two"), item("count")]
TESTED = [item("colour", "red"), item("colour", "blue"), item("count", "two", "three"), item("other", "x"), item("colour")]
TRUE, FALSE = ["red", "blue", "three", "x", "?"], ["red", "red", "one", "y", "?"]


def test_majority_is_per_type_and_compares_answers_as_the_evaluator_does() -> None:
    assert majority_answers(TRAIN) == {"colour": "red", "count": "2"}
    found = majority_accuracy(TRAIN, TESTED)
    assert found == {"accuracy": 50.0, "accuracy/colour": 50.0, "accuracy/count": 100.0, "accuracy/other": 0.0}


def test_accuracy_counts_items_with_references_only() -> None:
    assert accuracy_of(TRUE, TESTED)["accuracy"] == 100.0
    assert accuracy_of(FALSE, TESTED) == {
        "accuracy": 25.0, "accuracy/colour": 50.0, "accuracy/count": 0.0, "accuracy/other": 0.0
    }  # fmt: skip
    assert accuracy_of(["red"], [item("", "red")]) == {"accuracy": 100.0}
    assert accuracy_of(["red"], [item("colour")]) == {}


def test_style_gap_is_in_points_per_type() -> None:
    assert style_gap({"accuracy": 60.0, "accuracy/a": 50.0}, {"accuracy": 40.0, "accuracy/a": 55.0}) == {
        "style_gap": 20.0, "style_gap/a": -5.0
    }  # fmt: skip


class Model:
    """Answers rightly, or not under the controls that it is told."""

    def __init__(self, *weak: str) -> None:
        self.weak, self.asked = weak, []

    def __call__(self, control: str) -> list[str]:
        self.asked.append(control)
        return FALSE if control in self.weak else TRUE


def run(names: tuple[str, ...], model: Model, said: list[str], **changes: Any) -> dict[str, float]:
    facts = {"train": TRAIN, "tested": TESTED, "has_gates": True, "is_permuted": False} | changes
    return measure(names, said, model, **facts)


def test_each_control_is_named_and_the_gap_is_true_minus_permuted(caplog: pytest.LogCaptureFixture) -> None:
    model = Model("shuffled_style", "no_image")
    with caplog.at_level(logging.INFO):
        found = run(("majority", "shuffled_style", "no_image", "ungated"), model, TRUE)
    assert model.asked == ["shuffled_style", "no_image", "ungated"]
    assert found["style_gap"] == 75.0 and found["style_gap/count"] == 100.0
    of_all = {name.split("/")[1]: value for name, value in found.items() if name.endswith("/accuracy")}
    assert of_all == {"majority": 50, "shuffled_style": 25, "no_image": 25, "ungated": 100}
    assert "* control/no_image/accuracy: 25.0%" in caplog.text and "* style_gap: 75.0\n" in caplog.text


def test_a_test_with_permuted_styles_is_compared_with_the_true_ones() -> None:
    assert run(("shuffled_style",), Model(), FALSE, is_permuted=True)["style_gap"] == 75.0


def test_without_gates_controls_of_style_are_left_out() -> None:
    model = Model()
    found = run(("majority", "shuffled_style", "no_style", "ungated", "no_image"), model, TRUE, has_gates=False)
    assert model.asked == ["no_image"] and "style_gap" not in found and "control/majority/accuracy" in found


def test_nothing_is_measured_without_references_or_controls() -> None:
    model = Model()
    assert run(("majority", "no_image"), model, ["x"], tested=[item("colour")]) == {} and model.asked == []
    assert run((), model, TRUE) == {}

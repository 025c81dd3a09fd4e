"""Which captions are learned, and from which data sets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_captions import Captioned

from trainers.viecap.caption_store.training_captions import captions_of, collect_captions, problems_with_items
from trainers.viecap.data import distinct_images, target_of


def item(captions: list[str], entities: list[list[str]] | None = None, *, path: str = "a.png", **extras: Any) -> Captioned:
    known = {"captions": json.dumps(captions), "entities": "" if entities is None else json.dumps(entities), "image_id": "a"}
    return Captioned(known | extras, impath=__file__ if path == "a.png" else path, label=0, classname="caption")


def test_captions_are_normalised_in_order_and_blank_ones_left_out() -> None:
    found = collect_captions([item(["a dog ", "  "]), item(["A CAT!"])])
    assert found.texts == ("A dog.", "A cat!") and found.given is None and found.n_blank == 1 and len(found) == 2


def test_given_entities_stay_with_their_captions() -> None:
    found = collect_captions([item(["a dog", "", "a cat"], [["dog"], ["nothing"], ["cat"]]), item(["x y"], [[]])])
    assert found.given == (("dog",), ("cat",), ())


def test_entities_of_some_captions_only_are_not_taken_for_those_of_others() -> None:
    assert collect_captions([item(["one"]), item(["two"], [["b"]])]).given is None
    assert collect_captions([item(["two"], [["b"]]), item(["one"])], limit=1).given == (("b",),)


@pytest.mark.parametrize(("limit", "texts"), [(1, ("A.",)), (2, ("A.", "B.")), (3, ("A.", "B.", "C.")), (0, ("A.", "B.", "C."))])
def test_the_first_captions_are_taken(limit: int, texts: tuple[str, ...]) -> None:
    assert collect_captions([item(["a", "b"]), item(["c"])], limit).texts == texts


def test_items_of_other_data_sets_are_told_what_is_missing() -> None:
    assert problems_with_items([item(["a"])], "Ours") == []
    (problem,) = problems_with_items([Captioned({"question": "?"}, impath=__file__, label=0, classname="x")], "Theirs")
    assert "DATASET.NAME Theirs: its items have no captions, image_id" in problem and "CaptionFiles" in problem
    assert captions_of(Captioned({}, impath=__file__, label=0, classname="x")) == []


def test_an_evaluator_gets_references_and_domain() -> None:
    found = target_of(item(["a", "b"], split_name="near_domain"))
    assert found == {"image_id": "a", "captions": ["a", "b"], "domain": "near_domain"}


def test_one_name_for_two_pictures_is_refused() -> None:
    assert distinct_images([item(["a"]), item(["b"])]) == {"a": __file__}
    with pytest.raises(ValueError, match="image_id 'a' names two files"):
        distinct_images([item(["a"]), item(["b"], path=pytest.__file__)])

"""Training samples: what is learned, what is dropped and counted, and when that is too much."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tiny_llavas import tiny_tokenizer
from tiny_questions import Question

from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.model.sequence import longest_length
from trainers.bgobj_llava.samples import Turns, drop_unusable, problems_with_items, turns_of
from trainers.question_items import learned_answer

ENCODER = PromptEncoder(tiny_tokenizer())
N_PATCHES = 16


def length_of(turns: Turns) -> int:
    return longest_length(ENCODER.encode(turns), N_PATCHES, ModelOptions())


def ask(answers: list[str], question: str = "what colour is it?", **extras: Any) -> Question:
    said = {"question": question, "answers": json.dumps(answers), "boxes": "[]"}
    return Question(said | extras, impath=__file__, label=0)


def test_most_frequent_reference_is_learned_the_first_of_equals() -> None:
    assert learned_answer(["red", "blue", "blue"]) == "blue"
    assert learned_answer(["two", "one", "one", "two"]) == "two"
    assert learned_answer([]) == ""


def test_blank_turns_mean_one_turn() -> None:
    assert turns_of(ask(["red"], turns="").extras) == [("what colour is it?", "red")]


def test_unusable_samples_are_dropped_in_place_and_counted_by_reason() -> None:
    usual = length_of([("what colour is it?", "red")])
    items = [
        ask(["red"]), ask([]), ask(["  "]), ask(["red"], question="<image>"), ask(["red </s>"]),
        ask(["red " * 40]), ask(["blue"], turns=json.dumps([["what is it?", "circle"], ["where?", ""]])),
    ]  # fmt: skip
    same = items
    drops = drop_unusable(items, length_of, max_len=usual + 20)
    assert items is same and len(items) == 1
    counts = {reason: len(names) for reason, names in drops.reasons.items()}
    too_long = f"longer than MAX_LEN {usual + 20} tokens"
    assert counts == {"empty answer": 3, "empty question": 1, "reserved token": 1, too_long: 1}
    assert drops.to_dict() == {"samples": 7, "dropped": counts}


def test_a_turn_without_an_answer_in_the_middle_is_an_empty_answer() -> None:
    items = [ask(["red"], turns=json.dumps([["what is it?", None], ["where?", "left"]]))]
    assert list(drop_unusable(items, length_of, max_len=999).reasons) == ["empty answer"] and items == []


def test_labels_that_cannot_be_found_are_a_reason_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder(tiny_tokenizer())
    encoder._label = lambda ids, offsets, spans: PromptEncoder._label(encoder, ids, [(a - 3, b + 3) for a, b in offsets], spans)
    items = [ask(["red"])]
    drops = drop_unusable(items, lambda turns: len(encoder.encode(turns).rest), max_len=99)
    assert list(drops.reasons) == ["offset failure"]


def test_the_longest_allowed_sequence_stays() -> None:
    usual = length_of([("what colour is it?", "red")])
    for limit, kept in ((usual, 1), (usual - 1, 0)):
        items = [ask(["red"])]
        drops = drop_unusable(items, length_of, max_len=limit)
        assert (len(items), drops.longest) == (kept, usual * kept)


def test_first_ten_of_a_reason_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    drops = drop_unusable([ask([], question=f"{n:02d}? ") for n in range(12)], length_of, max_len=999)
    with caplog.at_level(logging.INFO, "trainers"):
        drops.log()
    assert "Dropped, empty answer: 12 of 12 samples" in caplog.text
    assert caplog.text.count(f"{__file__}: ") == 10 and "and 2 more" in caplog.text


def test_too_many_drops_stop_the_run_by_key() -> None:
    drops = drop_unusable([ask(["red"]), ask([]), ask(["blue"]), ask(["one"])], length_of, max_len=999)
    drops.check(0.25, "DATA.MAX_DROP")
    with pytest.raises(ValueError, match=r"1 of 4 training samples .*\(empty answer: 1\), more than DATA.MAX_DROP 0.2"):
        drops.check(0.2, "DATA.MAX_DROP")


def test_items_without_questions_and_tokens_are_refused_by_key() -> None:
    bare = Question({}, impath=__file__, label=0)
    (problem,) = problems_with_items([ask(["red"]), bare], "MiniScenes", ocr_tokens=False)
    assert "MiniScenes: its items have no answers, boxes, question" in problem and "DATASET.MINI_VIEW questions" in problem
    (problem,) = problems_with_items([ask(["red"])], "VQAJson", ocr_tokens=True)
    assert "EVAL.OCR_TOKENS is True" in problem
    assert problems_with_items([ask(["red"], ocr_tokens="[]")], "TextVQA", ocr_tokens=True) == []

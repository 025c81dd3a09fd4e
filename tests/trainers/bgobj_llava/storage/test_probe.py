"""The probe: what makes it another one, and which differences of logits are allowed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from answer_worlds import SMALLEST, small_model
from torch import nn

from trainers.bgobj_llava.model.prompt import PromptEncoder, PromptTemplate
from trainers.bgobj_llava.storage.probe import Probe, check_probe, compute_probe

STORED = Probe("a" * 64, "float32", "cpu", [0.5, -1.0, 2.0, 0.0], 40.0)
WHERE = Path("adapter")


def moved(by: float, number: int = 2, **changes: object) -> Probe:
    logits = [each + by * (place == number) for place, each in enumerate(STORED.logits)]
    return replace(STORED, logits=logits, **changes)


def test_differences_are_measured_by_the_largest_logit() -> None:
    assert check_probe(STORED, moved(0.9e-4 * 40), WHERE) == []
    with pytest.raises(ValueError, match="logits differ by 0.0044, expected at most 0.004"):
        check_probe(STORED, moved(1.1e-4 * 40), WHERE)


def test_the_coarser_type_decides() -> None:
    assert check_probe(STORED, moved(1.9, dtype="bfloat16"), WHERE) == []
    assert check_probe(moved(1.9, dtype="bfloat16"), STORED, WHERE) == []
    with pytest.raises(ValueError, match="float32 on cpu, now float16 on cpu"):
        check_probe(STORED, moved(0.5, dtype="float16"), WHERE)


def test_small_logits_are_measured_by_one() -> None:
    stored = replace(STORED, scale=0.01)
    assert check_probe(stored, replace(moved(0.9e-4), scale=0.01), WHERE) == []
    with pytest.raises(ValueError, match="expected at most 0.0001 "):
        check_probe(stored, replace(moved(1.1e-4), scale=0.01), WHERE)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_says_no_numbers_is_refused(number: int, value: float) -> None:
    with pytest.raises(ValueError, match="logits differ by (nan|inf)"):
        check_probe(STORED, moved(value, number), WHERE)


def test_another_input_is_not_compared() -> None:
    (note,) = check_probe(STORED, moved(99.0, input="b" * 64), WHERE)
    assert "was not compared" in note


def test_input_and_options_make_the_probe_and_the_mode_stays() -> None:
    model = small_model(sizes=SMALLEST)
    encoder = PromptEncoder(model.tokenizer)
    first = compute_probe(model, encoder)
    assert first == compute_probe(model, encoder) and not model.training
    assert compute_probe(model.train(), encoder) == first and model.training
    model.eval()
    others = [
        compute_probe(model, PromptEncoder(model.tokenizer, PromptTemplate(system="Hello."))),
        compute_probe(small_model(sizes=SMALLEST, position="raster"), encoder),
        compute_probe(small_model(sizes=SMALLEST, cls="none"), encoder),
        compute_probe(small_model(sizes=SMALLEST, split="order_only"), encoder),
    ]
    assert len({first.input, *(each.input for each in others)}) == 5


def test_dropout_is_off_while_the_probe_is_computed() -> None:
    model = small_model(sizes=SMALLEST)
    encoder = PromptEncoder(model.tokenizer)
    expected = compute_probe(model, encoder)
    projector = model.llava.model.multi_modal_projector
    projector.linear_1 = nn.Sequential(projector.linear_1, nn.Dropout(0.5))
    assert compute_probe(model.train(), encoder).logits == pytest.approx(expected.logits)
    with torch.no_grad():
        model.llava.lm_head.weight.mul_(1.01)
    assert compute_probe(model, encoder).logits != pytest.approx(expected.logits)

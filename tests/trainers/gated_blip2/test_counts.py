"""Counts at full size, on tensors without memory, are those of the specification; each parameter is counted once."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from tiny_blip2s import random_blip2
from torch import nn

from trainers.gated_blip2.counts import PARTS, Counts, count_model, count_parts, numbers_of, part_of
from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.loading import SHAPES, read_config
from trainers.gated_blip2.presets import PRESETS, build_conditioner
from trainers.gated_blip2.style.networks import build_network
from trainers.gated_blip2.weights import build_empty

PADDED = 50_304


@lru_cache
def full_size(*, text_branch: bool, vocabulary: int = PADDED) -> nn.Module:
    config = read_config(SHAPES["blip2_opt_2_7b"])
    config.text_config.vocab_size = vocabulary
    config.qformer_config.use_qformer_text_input = text_branch
    return build_empty(config)


def count(name: str, *, vocabulary: int = PADDED) -> Counts:
    preset = PRESETS[name]
    blip2 = full_size(text_branch=preset.text_branch, vocabulary=vocabulary)
    with torch.device("meta"):
        conditioner = build_conditioner(preset, blip2, 1536)
        style = build_network("efficientnet_b3", 28)
    return count_model(preset, blip2, conditioner, style_encoder=style)


def test_parts_of_the_backbone() -> None:
    found = count_parts(full_size(text_branch=False))
    assert list(found) == list(PARTS)
    assert found["vision_model"] + found["ln_vision"] == 985_952_256
    assert (found["ln_vision"], found["query_tokens"], found["text_branch"]) == (2_816, 24_576, 0)
    assert (found["qformer"], found["language_projection"]) == (105_137_664, 1_968_640)
    assert sum(found.values()) == 3_744_761_856
    assert count_parts(full_size(text_branch=True))["text_branch"] == 56_687_616
    smaller = count_parts(full_size(text_branch=True, vocabulary=50_272))
    assert smaller["language_model"] == 2_651_596_800
    assert sum(smaller.values()) - smaller["text_branch"] == 3_744_679_936


def test_share_of_the_default() -> None:
    found = count("gates_proj")
    assert (found.trainable, found.live, found.dead) == (9_874_944, 9_874_944, {})
    assert f"{found.share:.2f}" == "0.26"


@pytest.mark.parametrize(("vocabulary", "as_built"), [(50_272, 3_822_973_880), (PADDED, 3_823_055_800)])
def test_the_original_recipe_is_itemised_to_its_reference_total(vocabulary, as_built) -> None:
    found = count("original", vocabulary=vocabulary)
    assert found.as_built == as_built
    assert (found.zero_biases, found.padding_rows) == (54_912, as_built - 3_822_973_880)
    assert (found.reference, f"{found.share:.2f}") == (3_822_918_968, "4.57")
    assert (found.live, found.n_dead, len(found.dead)) == (118_043_792, 56_687_616, 72)
    assert (found.parts["style_encoder"], found.style_head) == (10_696_232, 43_036)
    lines = [line.split() for line in found.describe().splitlines()]
    assert ["reference", "total", "3,822,918,968"] in lines
    assert ["dead", "by", "design", "56,687,616", "72", "tensors"] in lines
    assert ["key", "biases", "that", "are", "zero", "-54,912"] in lines


def test_a_static_style_is_counted_with_what_trains() -> None:
    source, blip2, preset = nn.Module(), random_blip2(), PRESETS["gates"]
    source.constant = nn.Parameter(torch.zeros(6))
    conditioner = build_conditioner(preset, blip2, 6, GateOptions(hidden=8))
    plain, static = (count_model(preset, blip2, conditioner, style_source=each) for each in (None, source))
    assert static.live - plain.live == static.as_built - plain.as_built == 6 == static.groups["style_source"]
    assert static.style_head == 0 and "style_encoder" not in static.parts


def test_each_parameter_of_a_small_model_is_counted_once() -> None:
    blip2 = random_blip2(text_input=True)
    found = count_model(PRESETS["projection"], blip2)
    total = sum(each.numel() for each in blip2.parameters())
    assert found.as_built == total == sum(found.parts.values())
    assert found.parts["text_branch"] == sum(
        each.numel() for name, each in blip2.named_parameters() if part_of(name) == "text_branch"
    )
    assert found.zero_biases == 2 * 32 and found.padding_rows == 0
    assert found.to_dict()["trainable"] == found.to_dict()["live"] == found.live


def test_a_packed_weight_counts_what_it_stands_for() -> None:
    packed = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    assert numbers_of(packed) == 32
    packed.quant_state = type("State", (), {"shape": (8, 8)})()
    assert numbers_of(packed) == 64

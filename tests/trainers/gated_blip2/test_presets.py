"""What the presets train: published counts on meta tensors, groups with their rates, and gradients where they are due."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from gated_qformers import STYLE_WIDTH, gated, image_tokens, noise, run_qformer, styles
from tiny_blip2s import random_blip2
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, OPTConfig

from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.presets import (
    PRESETS,
    Preset,
    build_conditioner,
    count_parameters,
    dead_by_design,
    parameter_groups,
    trainable_parts,
)
from trainers.parameter_groups import Trainables, check_cover

NAMES = ["frozen", "projection", "gates", "gates_proj", "gates_xattn", "qformer", "original_live", "original"]
GATED = NAMES[2:]


class StaticStyle(torch.nn.Module):
    """A style source with a learned constant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.constant = torch.nn.Parameter(torch.zeros(width))


@cache
def real_size(*, text_input: bool = False) -> Blip2ForConditionalGeneration:
    """BLIP-2 with OPT-2.7B without weights."""
    text = OPTConfig(hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=2560)
    config = Blip2Config(qformer_config=Blip2QFormerConfig(use_qformer_text_input=text_input), text_config=text)
    with torch.device("meta"):
        return Blip2ForConditionalGeneration(config)


def real_parts(name: str, options: GateOptions | None = None, *, static: bool = False) -> dict:
    preset = PRESETS[name]
    blip2 = real_size(text_input=preset.text_branch)
    with torch.device("meta"):
        conditioner = build_conditioner(preset, blip2, 1536, options)
        source = StaticStyle(1536) if static else None
    return trainable_parts(preset, blip2, conditioner, source)


def total(parts: dict) -> int:
    return sum(count_parameters(parts).values())


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parts_of_blip2_have_the_published_sizes() -> None:
    blip2 = real_size()
    assert size(blip2) == 3_744_679_936
    assert size(blip2.qformer) == 105_137_664
    assert size(blip2.qformer.encoder.layer[0].crossattention) == 3_346_944
    assert size(blip2.language_projection) == 1_968_640 and blip2.query_tokens.numel() == 24_576
    assert size(blip2.vision_model) == 985_952_256 and size(blip2.vision_model.post_layernorm) == 2_816
    assert size(blip2.language_model) == 2_651_596_800


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("frozen", 0),
        ("projection", 1_993_216),
        ("gates", 7_881_728),
        ("gates_proj", 9_874_944),
        ("gates_xattn", 29_956_608),
        ("qformer", 115_012_608),
        ("original_live", 118_043_792),
        ("original", 118_043_792),
    ],
)
def test_counts_of_what_trains(name: str, expected: int) -> None:
    assert total(real_parts(name)) == expected


def test_original_is_count_faithful_with_its_dead_parameters() -> None:
    blip2 = real_size(text_input=True)
    dead = dead_by_design(PRESETS["original"], blip2)
    count = sum(blip2.get_parameter(name).numel() for name in dead)
    assert (len(dead), len(set(dead)), count) == (72, 72, 56_687_616)
    assert total(real_parts("original")) + count == 174_731_408
    assert size(blip2.qformer) == 161_825_280
    query_only = set(real_size().state_dict())
    assert sorted(set(blip2.state_dict()) - query_only) == sorted(dead)
    assert not set(dead) & {name for pairs in real_parts("original").values() for name, _ in pairs}
    for name in NAMES[:-1]:
        assert dead_by_design(PRESETS[name], blip2) == []


def test_groups_of_original() -> None:
    heads = 6 * 2 * (512 * 12 + 12)
    assert count_parameters(real_parts("original")) == {
        "gate_trunk": 4_021_392 - heads, "gate_heads": heads, "prompt_mapper": 5_708_288, "style_projection": 1_180_416,
        "language_projection": 1_968_640, "query_tokens": 24_576, "qformer": 105_137_664, "ln_vision": 2_816,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (GateOptions(granularity="head"), 900_824),
        (GateOptions(granularity="scalar"), 799_250),
        (GateOptions(question=True), 7_881_728 + 1_310_720),
        (GateOptions(layers=(1, 11)), 790_016 + 2 * 513 * 3 * 768),
        (GateOptions(sites="k"), 790_016 + 6 * 513 * 768),
    ],
)
def test_counts_of_other_gates(options: GateOptions, expected: int) -> None:
    assert total(real_parts("gates", options)) == expected


def test_static_style_is_a_group_of_its_own_beside_gates_only() -> None:
    parts = real_parts("gates", static=True)
    assert count_parameters(parts)["style_source"] == 1_536 and parts["style_source"][0][0] == "style_source.constant"
    assert total(real_parts("projection", static=True)) == 1_993_216
    with_static = {name: "style_source" in real_parts(name, static=True) for name in NAMES}
    assert with_static == {name: name in GATED for name in NAMES}


@pytest.mark.parametrize("text_input", [False, True])
def test_text_branch_never_trains(text_input: bool) -> None:
    blip2, preset = random_blip2(text_input=text_input), PRESETS["qformer"]
    parts = trainable_parts(preset, blip2, build_conditioner(preset, blip2, STYLE_WIDTH))
    plain = {f"qformer.{name}" for name, _ in random_blip2().qformer.named_parameters()}
    assert {name for name, _ in parts["qformer"]} == plain


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_state_dicts(name: str) -> None:
    preset, blip2 = PRESETS[name], random_blip2(text_input=name == "original")
    conditioner = build_conditioner(preset, blip2, STYLE_WIDTH, GateOptions(hidden=16))
    parts = trainable_parts(preset, blip2, conditioner)
    assert tuple(parts) == tuple(group for group in preset.trains if group != "style_source")
    known = dict(blip2.named_parameters())
    if conditioner is not None:
        known |= {f"conditioner.{key}": value for key, value in conditioner.named_parameters()}
        inside = {key for pairs in parts.values() for key, _ in pairs if key.startswith("conditioner.")}
        assert inside == {f"conditioner.{key}" for key in conditioner.state_dict()}
    pairs = [pair for pairs in parts.values() for pair in pairs]
    assert all(known[key] is parameter for key, parameter in pairs)
    assert len({id(parameter) for _, parameter in pairs}) == len(pairs)
    assert set(Trainables(parts).state_dict()) == {key for key, _ in pairs}


@pytest.mark.parametrize("name", GATED)
def test_rates_and_decay(name: str) -> None:
    preset, blip2 = PRESETS[name], random_blip2(text_input=name == "original")
    conditioner = build_conditioner(preset, blip2, STYLE_WIDTH, GateOptions(hidden=16))
    parts = trainable_parts(preset, blip2, conditioner, StaticStyle(STYLE_WIDTH))
    groups = parameter_groups(parts, 0.01)
    check_cover(Trainables(parts), groups)
    names = {id(parameter): key for pairs in parts.values() for key, parameter in pairs}
    given = {names[id(p)]: (group.lr_mult, group.weight_decay) for group in groups for p in group.parameters}
    assert len({group.name for group in groups}) == len(groups)
    for key, (lr_mult, decay) in given.items():
        assert lr_mult == (1.0 if key.startswith(("conditioner.", "style_source.")) else 0.1), key
        without = key.endswith(("bias", "query_tokens", "constant")) or "norm" in key.lower()
        assert decay == (0.0 if without else 0.01), key


def test_groups_are_split_where_decay_differs() -> None:
    parts = real_parts("gates_proj", static=True)
    groups = {group.name: group for group in parameter_groups(parts, 0.1)}
    assert list(groups) == [
        "gate_trunk", "gate_trunk_no_decay", "gate_heads", "gate_heads_no_decay", "style_source",
        "language_projection", "language_projection_no_decay", "query_tokens",
    ]  # fmt: skip
    assert groups["gate_trunk"].parameters[0].shape == (512, 1536) and groups["gate_trunk"].weight_decay == 0.1
    assert groups["query_tokens"].weight_decay == groups["gate_trunk_no_decay"].weight_decay == 0.0


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_declared_parameter_is_reached_and_no_other(name: str) -> None:
    """Heads learn from the first update on, what lies before them from the second; nothing dead but what is listed."""
    preset = PRESETS[name]
    system = gated(preset=name) if name in GATED else None
    blip2 = system.blip2 if system else random_blip2()
    blip2.requires_grad_(False)
    parts = trainable_parts(preset, blip2, system.conditioner if system else None)
    trainables, target = Trainables(parts).requires_grad_(True), noise(3, 4, 32, seed=4)
    before = copy.deepcopy(blip2.state_dict())
    optimizer = torch.optim.SGD(trainables.parameters(), lr=1e-2)
    late = tuple(key for group in ("gate_trunk", "prompt_mapper", "style_projection") for key, _ in parts.get(group, []))
    for step in range(3):
        optimizer.zero_grad()
        tokens = blip2.vision_model.post_layernorm(image_tokens()) if preset.post_ln else image_tokens()
        queries = system.queries(styles(), tokens) if system else run_qformer(blip2, tokens)
        ((blip2.language_projection(queries) - target) ** 2).mean().backward()
        reached = {key for key, parameter in trainables.named_parameters() if parameter.grad.ne(0).any()}
        assert set(dict(trainables.named_parameters())) - reached == (set(late) if step == 0 else set())
        optimizer.step()
    moved = {key for key, value in blip2.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= set(dict(trainables.named_parameters()))
    assert not moved & set(dead_by_design(preset, blip2))


def test_whether_the_qformer_trains() -> None:
    trains = {name for name, preset in PRESETS.items() if preset.trains_qformer}
    assert list(PRESETS) == NAMES and trains == {"gates_xattn", "qformer", "original_live", "original"}
    assert {name for name, preset in PRESETS.items() if preset.post_ln} == {"original_live", "original"}
    assert {name for name, preset in PRESETS.items() if preset.text_branch} == {"original"}


def test_original_presets_ignore_options_of_the_other_gates() -> None:
    options = GateOptions(hidden=16, granularity="channel", sites="k", question=False, layers=(3,), init_std=0.01)
    conditioner = build_conditioner(PRESETS["original_live"], random_blip2(), STYLE_WIDTH, options)
    gate = conditioner.gates["3"]
    assert list(conditioner.gates) == ["3"] and conditioner.layers == (3,)
    assert gate.widen.out_features == 512 and gate.scale.out_features == 4
    assert gate.scale.weight.std() > 0


def test_presets_that_do_not_fit_the_model_are_refused() -> None:
    blip2 = random_blip2()
    gates = build_conditioner(PRESETS["gates"], blip2, STYLE_WIDTH)
    assert build_conditioner(PRESETS["projection"], blip2, STYLE_WIDTH) is None
    with pytest.raises(ValueError, match="PRESET is 'gates', but its conditioner is none"):
        trainable_parts(PRESETS["gates"], blip2, None)
    with pytest.raises(ValueError, match="PRESET is 'projection', but its conditioner is StyleGate"):
        trainable_parts(PRESETS["projection"], blip2, gates)
    with pytest.raises(ValueError, match="PRESET is 'original', but its conditioner is none.*has no text branch"):
        trainable_parts(PRESETS["original"], blip2, None)
    with pytest.raises(ValueError, match="PRESET is 'original_live', but its conditioner is StyleGate"):
        trainable_parts(PRESETS["original_live"], blip2, gates)
    with pytest.raises(ValueError, match="GATE.LAYERS is"):
        build_conditioner(PRESETS["gates"], blip2, STYLE_WIDTH, GateOptions(layers=(2,)))


def test_a_group_that_a_preset_names_exists() -> None:
    """A misspelt group would train nothing without a word."""
    with pytest.raises(KeyError, match="qformr"):
        trainable_parts(Preset("odd", "none", ("qformr",)), random_blip2(), None)

"""Which parameters train, how many there are, and their state."""

from __future__ import annotations

import copy

import pytest
import torch
from split_models import build_model, encode_talks, random_images, random_split
from tiny_llavas import tiny_tokenizer

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.scopes import (
    SCOPES,
    add_lora,
    count_parameters,
    prepare_trainables,
    trainable_parts,
)

PROJECTOR, SEPARATORS, LAYER, NORM = 20_979_712, 16_384, 202_383_360, 4096
LORA_PER_RANK = 2_498_560


def build_scope(scope: str, **options) -> tuple[BgObjLlava, dict]:
    model = build_model(**options)
    if scope == "lora":
        add_lora(model, r=4, alpha=8, dropout=0.0)
    return model, trainable_parts(model, scope, last_k=2)


# -- counts of the 7B model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "options", "expected"),
    [
        ("projector", {}, {"projector": PROJECTOR, "separators": SEPARATORS}),
        ("projector", {"projector": "separate"}, {"projector": 2 * PROJECTOR, "separators": SEPARATORS}),
        ("projector", {"sep_style": "single", "fusion_layers": 2}, {"projector": PROJECTOR, "separators": 4096}),
        ("projector", {"split": "none", "projector": "separate"}, {"projector": PROJECTOR}),
        ("fusion_projector", {"fusion_layers": 4}, {"projector": PROJECTOR, "separators": SEPARATORS, "fusion": 4 * LAYER}),
        ("last_k", {}, {"projector": PROJECTOR, "separators": SEPARATORS, "llm_last": 3 * LAYER + NORM}),
        ("lora", {"sep_style": "none"}, {"projector": PROJECTOR, "lora": 16 * LORA_PER_RANK}),
        (
            "full",
            {"fusion_layers": 1},
            {"projector": PROJECTOR, "separators": SEPARATORS, "fusion": LAYER, "llm": 6_607_605_760 + 131_334_144},
        ),
    ],
)
def test_counts_of_the_7b_model(seven_b, scope, options, expected) -> None:
    model = BgObjLlava(seven_b, tiny_tokenizer(), ModelOptions(**options))
    if scope == "lora":
        add_lora(model, r=16, alpha=32, dropout=0.05)
    assert count_parameters(trainable_parts(model, scope, last_k=3)) == expected
    assert sum(parameter.numel() for parameter in seven_b.model.vision_tower.parameters()) == 303_507_456


def test_lora_layers_are_in_the_language_model_only() -> None:
    model, parts = build_scope("lora", fusion_layers=1)
    names = [name for name, _ in parts["lora"]]
    assert len(names) == 2 * 7 * 4 and all(".language_model.layers." in name for name in names)
    assert not [name for name, _ in model.llava.model.vision_tower.named_parameters() if "lora" in name]
    assert not [name for name, _ in model.fusion.named_parameters() if "lora" in name]
    with pytest.raises(ValueError, match="already"):
        add_lora(model, r=4, alpha=8, dropout=0.0)


@torch.no_grad()
def test_lora_layers_change_nothing_at_first() -> None:
    plain, (tuned, _) = build_model(), build_scope("lora")
    images, splits, texts = random_images(plain, 1), random_split(plain, 1), encode_talks(plain, 0)
    assert torch.equal(tuned(images, splits, texts)[0], plain(images, splits, texts)[0])


# -- what trains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", SCOPES)
def test_five_updates_change_the_scope_and_nothing_else(scope, dtype) -> None:
    model, parts = build_scope(scope, fusion_layers=1, projector="separate", llava={"dtype": dtype})
    trainables = prepare_trainables(model, parts)
    assert {parameter.dtype for parameter in trainables.parameters()} == {torch.float32}
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(trainables.parameters(), lr=1e-2)
    images, splits, texts = random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            model.train().train_losses(images, splits, texts).total.backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for pairs in parts.values() for name, _ in pairs}
    frozen = [parameter for name, parameter in model.named_parameters() if name not in changed]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert {parameter.dtype for parameter in frozen} == {dtype} or scope == "projector"


def test_five_updates_lower_the_loss() -> None:
    model, parts = build_scope("full")
    trainables = prepare_trainables(model, parts)
    optimizer = torch.optim.AdamW(trainables.parameters(), lr=3e-3)
    images, splits, texts = random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.train().train_losses(images, splits, texts)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.7 * losses[0]


def test_groups_of_each_scope() -> None:
    expected = {
        "projector": ["projector", "separators"],
        "fusion_projector": ["projector", "separators", "fusion"],
        "last_k": ["projector", "separators", "fusion", "llm_last"],
        "lora": ["projector", "separators", "fusion", "lora"],
        "full": ["projector", "separators", "fusion", "llm"],
    }
    assert {scope: list(build_scope(scope, fusion_layers=1)[1]) for scope in SCOPES} == expected


def test_last_layers_are_the_last_with_the_final_norm() -> None:
    _, parts = build_scope("last_k")
    layers = {name.split(".layers.")[1].split(".")[0] for name, _ in parts["llm_last"] if ".layers." in name}
    assert layers == {"2", "3"}
    assert [name for name, _ in parts["llm_last"] if ".layers." not in name] == ["llava.model.language_model.norm.weight"]


@pytest.mark.parametrize(
    ("scope", "last_k", "words"),
    [
        ("projectors", 3, "TRAIN.SCOPE is 'projectors'; expected one of projector"),
        ("last_k", 0, r"LAST_K is 0; expected 1\.\.4"),
        ("last_k", 5, r"LAST_K is 5; expected 1\.\.4"),
        ("fusion_projector", 3, "FUSION.LAYERS above 0"),
        ("lora", 3, "add LoRA layers first"),
    ],
)
def test_impossible_scopes_are_refused(scope, last_k, words) -> None:
    with pytest.raises(ValueError, match=words):
        trainable_parts(build_model(), scope, last_k=last_k)


def test_a_llava_left_as_it_is_may_have_any_scope() -> None:
    model = build_model(split="none", fusion_layers=2)
    assert list(trainable_parts(model, "fusion_projector")) == ["projector"]


# -- state ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_state_moves_to_a_model_built_anew(scope) -> None:
    options = {"fusion_layers": 1, "llava": {"dtype": torch.bfloat16}}
    model, parts = build_scope(scope, **options)
    trainables = prepare_trainables(model, parts)
    with torch.no_grad():
        for parameter in trainables.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    state = trainables.state_dict()
    assert set(state) == {name for pairs in parts.values() for name, _ in pairs} <= set(dict(model.named_parameters()))
    other, other_parts = build_scope(scope, **options)
    prepare_trainables(other, other_parts).load_state_dict({name: value.clone() for name, value in state.items()})
    images, splits, texts = random_images(model, 1), random_split(model, 1), encode_talks(model, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(other(images, splits, texts)[0], model(images, splits, texts)[0])


def test_trainables_hold_the_models_own_parameters() -> None:
    model, parts = build_scope("last_k")
    trainables = prepare_trainables(model, parts)
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in trainables.named_parameters())
    before = {name: value.clone() for name, value in trainables.state_dict().items()}
    trainables.load_state_dict({name: value + 1 for name, value in before.items()})
    assert all(torch.equal(own[name], value + 1) for name, value in before.items())

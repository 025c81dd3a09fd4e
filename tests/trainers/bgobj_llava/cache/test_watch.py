"""Whatever changes a model's answers makes what is cached of it unreachable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from answer_worlds import answer, generator, new_cache, picture, same, small_model, split_of
from torch import nn

from trainers.bgobj_llava.cache import watch as cache_watch
from trainers.bgobj_llava.cache.watch import ContextWatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder, PromptTemplate
from trainers.bgobj_llava.model.scopes import add_lora, prepare_trainables, trainable_parts

SCENE, PREFIX = picture(0), (1, 2, 3)


@pytest.fixture
def model() -> BgObjLlava:
    return small_model(fusion_layers=1)


def step(model: BgObjLlava) -> None:
    parts = trainable_parts(model, "fusion_projector")
    parameters = [parameter for pairs in parts.values() for _, parameter in pairs]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def load(model: BgObjLlava) -> None:
    with torch.no_grad():
        for pairs in trainable_parts(model, "projector").values():
            for _, parameter in pairs:
                parameter.copy_(parameter + 1e-3)


def load_into_module(model: BgObjLlava) -> None:
    projector = model.llava.model.multi_modal_projector
    projector.load_state_dict({name: value * 1.01 for name, value in projector.state_dict().items()})


@torch.no_grad()
def change_llm(model: BgObjLlava) -> None:
    model.llava.model.language_model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3


def replace_parameter(model: BgObjLlava) -> None:
    norm = model.llava.model.language_model.norm
    norm.weight = nn.Parameter(norm.weight.detach() * 1.01)


def replace_data(model: BgObjLlava) -> None:
    model.separators.table.data = model.separators.table.data * 1.01


@torch.no_grad()
def change_tower(model: BgObjLlava) -> None:
    next(model.llava.model.vision_tower.parameters()).mul_(1.01)


def change_buffer(model: BgObjLlava) -> None:
    model.llava.model.language_model.rotary_emb.inv_freq.mul_(1.01)


def change_dtype(model: BgObjLlava) -> None:
    model.to(torch.bfloat16)


CHANGES = (step, load, load_into_module, change_llm, replace_parameter, replace_data, change_tower, change_buffer, change_dtype)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_hit_nothing_and_free_what_was_cached(model: BgObjLlava, change: Callable) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    answer(asked, SCENE, split_of(5))
    before = answer(asked, SCENE, split_of(5))
    assert before.trace["hit"] == "kv"
    change(model)
    asked.refresh()
    assert len(cache) == 0 and cache.counters.nbytes["device"] == 0
    after = answer(asked, SCENE, split_of(5))
    assert after.trace["hit"] == "" and same(after, answer(generator(model), SCENE, split_of(5)))


def test_nobody_has_to_say_that_weights_changed(model: BgObjLlava) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    answer(asked, SCENE, split_of(5))
    step(model)
    assert answer(asked, SCENE, split_of(5)).trace["hit"] == ""
    assert answer(asked, SCENE, split_of(5)).trace["hit"] == "kv"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("base", ["", "f" * 64])
def test_changed_weights_make_another_context(model: BgObjLlava, change: Callable, base: str) -> None:
    watch = ContextWatch(model, base=base)
    before = watch.context(PREFIX)
    change(model)
    assert watch.context(PREFIX) != before


def test_equal_models_share_a_context_and_others_do_not() -> None:
    def context(**options: object) -> str:
        return ContextWatch(small_model(**options), {"mean": [0.5]}).context(PREFIX)

    contexts = [
        context(),
        context(position="raster"),
        context(sep_style="single"),
        context(fusion_layers=1),
        context(fusion_layers=1, fusion_init="random"),
        context(fusion_layers=1, fusion_init="random", seed=1),
        context(projector="separate"),
        context(cls="none"),
        context(split="isolate_only", sep_style="none"),
        context(attn="eager"),
        context(dtype=torch.bfloat16),
    ]
    assert len(set(contexts)) == len(contexts) and context() == contexts[0]


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_each_parts_attention_counts(model: BgObjLlava, part: str) -> None:
    before = ContextWatch(model).context(PREFIX)
    getattr(model.llava.model, part).config._attn_implementation = "eager"
    assert ContextWatch(model).context(PREFIX) != before


def test_what_is_not_in_the_files_is_hashed_though_the_files_are_known() -> None:
    contexts = {
        ContextWatch(small_model(fusion_layers=1, fusion_init="random", seed=seed), base="f" * 64).context(PREFIX)
        for seed in (0, 1)
    }
    assert len(contexts) == 2


def test_preprocessing_prefix_base_and_autocast_count(model: BgObjLlava) -> None:
    watch = ContextWatch(model, {"mean": [0.5]})
    contexts = [watch.context(PREFIX), watch.context((1, 2)), ContextWatch(model, {"mean": [0.4]}).context(PREFIX)]
    contexts += [ContextWatch(model, {"mean": [0.5]}, base=base * 64).context(PREFIX) for base in "ab"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contexts.append(watch.context(PREFIX))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        contexts.append(watch.context(PREFIX))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(set(contexts)) == len(contexts) and watch.context(PREFIX) == contexts[0]


def test_another_prompt_hits_nothing(model: BgObjLlava) -> None:
    cache = new_cache()
    answer(generator(model, cache), SCENE, split_of(5))
    other = generator(model, cache)
    other._encoder = PromptEncoder(model.tokenizer, PromptTemplate(system="The assistant gives answers."))
    assert answer(other, SCENE, split_of(5)).trace["hit"] == ""


def test_switching_an_adapter_makes_another_context() -> None:
    model = small_model()
    plain = ContextWatch(model).context(PREFIX)
    add_lora(model, r=2, alpha=4.0, dropout=0.0)
    prepare_trainables(model, trainable_parts(model, "lora"))
    watch = ContextWatch(model)
    layers = [module for module in model.modules() if "merged_adapters" in module.__dict__]
    contexts = [plain, watch.context(PREFIX)]
    for layer in layers:
        layer.enable_adapters(False)
    contexts.append(watch.context(PREFIX))
    for layer in layers:
        layer.enable_adapters(True)
    assert watch.context(PREFIX) == contexts[1]
    with torch.no_grad():
        next(layer for layer in layers).lora_B["default"].weight.add_(0.1)
    contexts.append(watch.context(PREFIX))
    layers[0].merge()
    contexts.append(watch.context(PREFIX))
    assert len(layers) > 0 and len(set(contexts)) == 5


def test_unchanged_weights_are_hashed_once(model: BgObjLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    original = cache_watch.weights_fingerprint
    monkeypatch.setattr(cache_watch, "weights_fingerprint", lambda *each: hashed.append(1) or original(*each))
    asked = generator(model, new_cache())
    for seed in range(4):
        answer(asked, picture(seed), split_of(5))
    assert len(hashed) == 1


def test_weights_known_from_files_are_not_hashed_again(model: BgObjLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[set[str]] = []
    monkeypatch.setattr(cache_watch, "weights_fingerprint", lambda base, tensors: names.append(set(tensors)) or "x")
    trained = "llava.model.multi_modal_projector.linear_1.weight"
    ContextWatch(model, base="f" * 64, trained=[trained]).context(PREFIX)
    assert trained in names[0] and "separators.table" in names[0]
    assert {name for name in names[0] if name.startswith("llava.")} == {trained}

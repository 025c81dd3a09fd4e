"""Layers between embeddings and language model."""

from __future__ import annotations

import pytest
import torch
from split_models import build_model, encode_talks, paint_objects, random_images, random_split

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.model.scopes import prepare_trainables, trainable_parts


@pytest.fixture
def fused_rows(monkeypatch) -> list[torch.Tensor]:
    """Rows that reach the language model, of each call."""
    seen: list[torch.Tensor] = []

    def watch(model: BgObjLlava) -> None:
        model.llava.model.language_model.register_forward_pre_hook(
            lambda module, arguments, named: seen.append(named["inputs_embeds"].detach().clone()), with_kwargs=True
        )

    monkeypatch.setattr(BgObjLlava, "watch", watch, raising=False)
    return seen


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_copied_layers_without_output_change_no_bit(n_layers, dtype, attn) -> None:
    llava = {"dtype": dtype, "attn": attn}
    plain, fused = build_model(llava=llava), build_model(llava=llava, fusion_layers=n_layers)
    images, splits, texts = random_images(plain, 2), random_split(plain, 2), encode_talks(plain, 0, 1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for found, expected in zip(fused(images, splits, texts), plain(images, splits, texts), strict=True):
                assert torch.equal(found, expected)
    assert len(fused.fusion.layers) == n_layers


@pytest.mark.parametrize("init", ["copy", "random"])
@torch.no_grad()
def test_other_initial_weights_do_change_the_logits(init) -> None:
    plain, fused = build_model(), build_model(fusion_layers=1, fusion_init=init, llava={"seed": 0})
    images, splits, texts = random_images(plain, 1), random_split(plain, 1), encode_talks(plain, 0)
    assert not torch.allclose(fused(images, splits, texts)[0], plain(images, splits, texts)[0], atol=1e-4)


def test_initial_weights_are_copies_zeros_or_seeded_noise() -> None:
    models = {init: build_model(fusion_layers=2, fusion_init=init) for init in ("copy", "copy_zero", "random")}
    for number in range(2):
        own = models["copy"].llava.model.language_model.layers[number].state_dict()
        copied, zeroed = (models[init].fusion.layers[number].state_dict() for init in ("copy", "copy_zero"))
        for name, value in own.items():
            assert torch.equal(copied[name], value)
            silent = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            assert torch.equal(zeroed[name], torch.zeros_like(value) if silent else value)
    again, other = (build_model(fusion_layers=2, fusion_init="random", seed=seed) for seed in (0, 1))
    name = "layers.1.mlp.up_proj.weight"
    noise = [model.fusion.state_dict()[name] for model in (models["random"], again, other)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


def test_only_the_silent_maps_learn_at_first_and_the_rest_afterwards() -> None:
    model = build_model(fusion_layers=1)
    prepare_trainables(model, trainable_parts(model, "fusion_projector"))
    optimizer = torch.optim.SGD(model.fusion.parameters(), lr=0.1)
    images, splits, texts = random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)
    alive = []
    for _ in range(2):
        optimizer.zero_grad()
        model.train().train_losses(images, splits, texts).total.backward()
        alive.append({name for name, p in model.fusion.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimizer.step()
    assert alive[0] == {"layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"}
    assert alive[1] == {name for name, _ in model.fusion.named_parameters()}


@pytest.mark.parametrize("position", ["sequential", "raster"])
@torch.no_grad()
def test_background_rows_never_move_with_objects_or_text(fused_rows, position) -> None:
    model = build_model(fusion_layers=2, fusion_init="copy", position=position)
    model.watch()
    images, splits = random_images(model, 1), random_split(model, 1)
    changed = paint_objects(model, images, splits)
    encoder = PromptEncoder(model.tokenizer)
    for pixels, answer in ((images, "red"), (changed, "red"), (images, "blue")):
        model(pixels, splits, [encoder.encode([("what colour is the circle?", answer)])])
    model(images, splits, [encoder.encode([("what striped is the circle?", "red")])])
    n_background = len(model.build_segments(model.encode(images, splits)[0], encode_talks(model, 0)[0]).s0)
    first = fused_rows[0][0, :n_background]
    assert all(torch.equal(rows[0, :n_background], first) for rows in fused_rows)
    assert not torch.equal(fused_rows[1], fused_rows[0]) and not torch.equal(fused_rows[3], fused_rows[0])


@torch.no_grad()
def test_rows_before_the_answer_never_move_with_it_and_answers_stay_raw(fused_rows) -> None:
    model = build_model(fusion_layers=2, fusion_init="copy")
    model.watch()
    images, splits, encoder = random_images(model, 1), random_split(model, 1), PromptEncoder(model.tokenizer)
    texts = [encoder.encode([("what colour is it?", answer)]) for answer in ("red", "blue green white", None)]
    for text in texts:
        model(images, splits, [text])
    end = len(fused_rows[2][0])
    assert all(torch.equal(rows[0, :end], fused_rows[2][0]) for rows in fused_rows)
    raw = model.build_segments(model.encode(images, splits)[0], texts[1]).whole
    assert torch.equal(fused_rows[1][0, end:], raw.embeds[end:]) and len(raw) > end
    assert not torch.equal(fused_rows[1][0, :end], raw.embeds[:end])


@torch.no_grad()
def test_second_turn_goes_around_the_layers_too(fused_rows) -> None:
    model = build_model(fusion_layers=1, fusion_init="copy")
    model.watch()
    images, splits, text = random_images(model, 1), random_split(model, 1), encode_talks(model, 1)[0]
    raw = model.build_segments(model.encode(images, splits)[0], text).whole
    model(images, splits, [text])
    assert torch.equal(fused_rows[0][0, raw.bypass :], raw.embeds[raw.bypass :])
    assert len(raw) - raw.bypass == len(text.rest) - text.first_answer > 5


@torch.no_grad()
def test_generated_tokens_do_not_reach_the_layers() -> None:
    model, calls = build_model(fusion_layers=1), []
    model.fusion.register_forward_hook(lambda *_: calls.append(1))
    images, text = random_images(model, 1), encode_talks(model, 0, answered=False)[0]
    segments, state = model.build_segments(model.encode(images, random_split(model, 1))[0], text), model.new_state()
    model.prefill(segments.whole, state)
    model.prefill(model.token_segment(torch.tensor([5]), segments.next_position), state)
    assert calls == [1] and state.fused_length == len(segments) and state.length == len(segments) + 1


def test_layers_are_fp32_and_hold_no_second_rotary_or_llm() -> None:
    model = build_model(fusion_layers=2, llava={"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in model.fusion.parameters()} == {torch.float32}
    names = {name.split(".")[0] for name in model.fusion.state_dict()}
    assert names == {"layers"}


def test_more_layers_than_the_llm_has_are_refused() -> None:
    with pytest.raises(ValueError, match="3 fusion layers are asked for; the language model has 2"):
        build_model(fusion_layers=3, llava={"llm": (2, 96)})

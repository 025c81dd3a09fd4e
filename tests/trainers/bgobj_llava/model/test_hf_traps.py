"""Habits of transformers that this room relies on or works around; each fails if the library changes."""

from __future__ import annotations

import pytest
import torch
from split_models import build_model, encode_talks, random_images, random_split
from torch import nn
from transformers import DynamicCache

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.scopes import prepare_trainables, trainable_parts

GAPS = {"position": "raster", "fusion_layers": 1, "fusion_init": "copy"}


class Spy:
    """Counts calls of modules, and those without a mask of two dimensions."""

    def __init__(self, *modules: nn.Module) -> None:
        self.calls, self.unmasked = 0, 0
        for module in modules:
            module.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: nn.Module, arguments: tuple, named: dict) -> None:
        mask = named.get("attention_mask", arguments[2] if len(arguments) > 2 else None)
        self.calls += 1
        self.unmasked += mask is None or mask.ndim != 2


def read_in_segments(model: BgObjLlava) -> None:
    images, text = random_images(model, 1), encode_talks(model, 0, answered=False)[0]
    segments, state = model.build_segments(model.encode(images, random_split(model, 1))[0], text), model.new_state()
    model.prefill(segments.s0, state)
    model.prefill(segments.suffix, state)
    model.prefill(model.token_segment(torch.tensor([5]), segments.next_position), state)


@pytest.mark.parametrize("split", ["bgobj", "order_only", "isolate_only", "none"])
def test_every_call_carries_a_mask(split) -> None:
    model = build_model(**GAPS, split=split)
    spy = Spy(model.llava.model.language_model, *([model.fusion] if model.fusion else []))
    prepare_trainables(model, trainable_parts(model, "projector"))
    images, splits, texts = random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)
    model.train_losses(images, splits, texts).total.backward()
    with torch.no_grad():
        model(images, splits, texts)
        if split != "none":
            read_in_segments(model)
    assert spy.calls == (2 if split == "none" else 9) and spy.unmasked == 0


@torch.no_grad()
def test_without_a_mask_gaps_in_positions_isolate_tokens() -> None:
    model = build_model(**GAPS)
    images, splits, texts = random_images(model, 1), random_split(model, 1), encode_talks(model, 0)
    expected = model(images, splits, texts)[0]

    def forget(module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict]:
        return arguments, named | {"attention_mask": None}

    model.llava.model.language_model.register_forward_pre_hook(forget, with_kwargs=True)
    found = model(images, splits, texts)[0]
    assert (found - expected).abs().max() > 0.1 * expected.abs().max()


@torch.no_grad()
def test_without_gaps_the_mask_makes_no_difference() -> None:
    model = build_model(split="order_only")
    images, splits, texts = random_images(model, 1), random_split(model, 1), encode_talks(model, 0)
    expected = model(images, splits, texts)[0]
    model.llava.model.language_model.register_forward_pre_hook(
        lambda module, arguments, named: (arguments, named | {"attention_mask": None}), with_kwargs=True
    )
    assert torch.allclose(model(images, splits, texts)[0], expected, atol=1e-5)


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_flash_attention_with_gaps_or_block_masks_is_refused(part) -> None:
    base = build_model().llava
    getattr(base.model, part).config._attn_implementation = "flash_attention_2"
    options = {"position": "raster", "vit_train": "mask", "vit_eval": "gather"}
    words = {"language_model": "POSITION is 'raster'", "vision_tower": "VIT_TRAIN is 'mask'"}[part]
    with pytest.raises(ValueError, match=words):
        BgObjLlava(base, build_model().tokenizer, ModelOptions(**options))
    allowed = ModelOptions(position="sequential", vit_train="gather")
    assert allowed.find_attention_problems("flash_attention_2", "flash_attention_2") == []


@torch.no_grad()
def test_each_request_has_caches_of_its_own() -> None:
    model = build_model(fusion_layers=1)
    first, second = model.new_state(), model.new_state()
    images, text = random_images(model, 1), encode_talks(model, 0)[0]
    segments = model.build_segments(model.encode(images, random_split(model, 1))[0], text)
    model.prefill(segments.s0, first)
    assert (first.length, second.length, second.fused_length) == (len(segments.s0), 0, 0)


def test_caches_join_into_new_memory_and_leave_stored_tensors_alone() -> None:
    stored = [(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))]
    kept = [tuple(each.clone() for each in pair) for pair in stored]
    cache = DynamicCache(ddp_cache_data=stored)
    cache.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), 0)
    cache.layers[0].keys.zero_()
    assert cache.get_seq_length() == 4
    assert all(torch.equal(now, before) for now, before in zip(stored[0], kept[0], strict=True))


def test_caches_are_cropped_by_numbers_below_zero() -> None:
    cache = DynamicCache(ddp_cache_data=[(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))])
    cache.crop(-1)
    assert cache.get_seq_length() == 2


@torch.no_grad()
def test_image_features_come_as_a_list_of_images() -> None:
    model = build_model()
    features = model.llava.get_image_features(pixel_values=random_images(model, 2)).pooler_output
    assert [tuple(image.shape) for image in features] == [(16, 96), (16, 96)]


@torch.no_grad()
def test_decoder_layers_need_their_rotary_tables() -> None:
    model = build_model()
    llm, rows = model.llava.model.language_model, torch.randn(1, 3, 96)
    tables = llm.rotary_emb(rows, position_ids=torch.arange(3)[None])
    assert llm.layers[0](rows, position_embeddings=tables).shape == rows.shape
    with pytest.raises(TypeError):
        llm.layers[0](rows)


@torch.no_grad()
def test_generate_continues_a_cache_when_given_rows_of_full_length() -> None:
    model = build_model(position="sequential")
    images, text = random_images(model, 1), encode_talks(model, 0, answered=False)[0]
    segments = model.build_segments(model.encode(images, random_split(model, 1))[0], text)
    whole = segments.whole.embeds[None]
    mask = torch.ones(1, len(segments), dtype=torch.long)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    expected = model.llava.generate(inputs_embeds=whole, **options)
    state = model.new_state()
    model.prefill(segments.s0, state)
    rows = torch.cat([torch.zeros_like(segments.s0.embeds), segments.suffix.embeds])[None]
    assert torch.equal(model.llava.generate(inputs_embeds=rows, past_key_values=state.llm, **options), expected)


def test_names_of_lora_targets_also_stand_in_the_vision_tower() -> None:
    """Why targets are a regular expression: a list of plain names would hit these."""
    names = [name for name, _ in build_model().llava.model.vision_tower.named_modules()]
    assert any(name.endswith("self_attn.q_proj") for name in names)

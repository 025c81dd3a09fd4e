"""The estimate of memory is near what autograd really keeps, and exact for what can be counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kept_activations import count_kept_bytes
from tiny_blip2s import tiny_config, word_tokenizer
from torch import nn

from trainers.adapters import BaseModel
from trainers.gated_blip2.gates import GateOptions, Parts
from trainers.gated_blip2.image_view import ImageViewFacts
from trainers.gated_blip2.loading import LoadedBlip2
from trainers.gated_blip2.memory import MemoryPlan, estimate_memory, quantised_bytes, weight_bytes
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS, build_conditioner, trainable_parts
from trainers.gated_blip2.prompts import IGNORED, TextBatch
from trainers.gated_blip2.weights import COMPUTE_DTYPES, PartDtypes, RandomWeights, build_empty, put_weights

STYLE_WIDTH, BATCH, N_TEXT, N_ANSWER = 6, 3, 20, 4
CPU = torch.device("cpu")


def build(
    preset_name: str, prec: str = "fp32", *, grad_ckpt: bool = False, device: torch.device = CPU
) -> tuple[GatedBlip2Model, Parts]:
    """Deeper and wider than the tiny one, so that what grows with the layers outweighs the rest."""
    preset, config = PRESETS[preset_name], tiny_config(text_input=PRESETS[preset_name].text_branch)
    config.qformer_config.hidden_size, config.qformer_config.intermediate_size = 64, 256
    config.qformer_config.attention_probs_dropout_prob = 0.0  # on a CPU its mask would be as large as the attention
    text = config.text_config
    text.num_hidden_layers, text.hidden_size, text.word_embed_proj_dim, text.ffn_dim = 6, 96, 96, 384
    config.num_query_tokens = 8
    model = build_empty(config)
    dtypes = PartDtypes(COMPUTE_DTYPES[prec], preset.trains_qformer, preset.post_ln)
    put_weights(model, RandomWeights(device, 0), dtypes=dtypes, device=device)
    view = ImageViewFacts(16, (0.5,) * 3, (0.5,) * 3, "bicubic")
    loaded = LoadedBlip2(model, word_tokenizer(), BaseModel("wide", "0"), view, 40, 3, dtypes.compute)
    conditioner = build_conditioner(preset, model, STYLE_WIDTH, GateOptions(hidden=8, init_std=0.1))
    parts = trainable_parts(preset, model, conditioner)
    for _, parameter in (pair for pairs in parts.values() for pair in pairs):
        parameter.requires_grad_(True)
    gated = GatedBlip2Model(loaded, conditioner=conditioner, post_ln_trains=preset.post_ln, prec=prec, grad_ckpt=grad_ckpt)
    return gated, parts


def plan_of(model: GatedBlip2Model, prec: str = "fp32", **changed: object) -> MemoryPlan:
    compute = None if prec == "fp32" else COMPUTE_DTYPES[prec]
    return replace(MemoryPlan("adamw", compute, BATCH, N_TEXT, N_ANSWER, n_tokens=40), **changed)


def kept_bytes(model: GatedBlip2Model) -> int:
    """Return what autograd keeps of a batch beside weights and their casts."""
    ids = torch.full((BATCH, N_TEXT), 5)
    labels = torch.where(torch.arange(N_TEXT) >= N_TEXT - N_ANSWER, ids, IGNORED)
    text = TextBatch(ids, ids > 0, labels, ids[:, :4], ids[:, :4] > 0, BATCH * N_ANSWER)
    return count_kept_bytes(model, lambda: model.loss(torch.randn(BATCH, 40, 32), torch.randn(BATCH, STYLE_WIDTH), text))


@pytest.mark.parametrize("prec", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["projection", "gates_proj", "gates_xattn", "qformer", "original"])
def test_activations_are_near_what_autograd_keeps(preset, prec) -> None:
    model, parts = build(preset, prec)
    found = kept_bytes(model)
    estimate = estimate_memory(model.blip2, parts, plan_of(model, prec))
    assert 0.75 < estimate.activations / found < 1.1


def test_recomputing_keeps_inputs_and_one_layer() -> None:
    sizes = {}
    for grad_ckpt in (False, True):
        model, parts = build("gates_proj", grad_ckpt=grad_ckpt)
        estimate = estimate_memory(model.blip2, parts, plan_of(model, grad_ckpt=grad_ckpt))
        sizes[grad_ckpt] = kept_bytes(model), estimate.activations
    text = model.blip2.config.text_config
    one_layer = BATCH * (8 + N_TEXT) * (6 * text.hidden_size + text.ffn_dim) * 4
    assert 0.8 < (sizes[True][1] - one_layer) / sizes[True][0] < 1.2
    assert sizes[True][1] < 0.5 * sizes[False][1]


def test_what_can_be_counted_is_exact() -> None:
    model, parts = build("gates_xattn", "bf16", device=torch.device("meta"))
    head = nn.Linear(3, 5)  # stands for a style encoder
    plan, numbers = plan_of(model, "bf16"), [each.numel() for pairs in parts.values() for _, each in pairs]
    estimate = estimate_memory(model.blip2, parts, plan, gates=[model.conditioner], style_encoder=head)
    total = sum(each.nbytes for each in model.parameters())
    assert estimate.weights == total + 20 * 4 == weight_bytes(model.blip2, plan, gates=[model.conditioner], style_encoder=head)
    assert (estimate.gradients, estimate.moments, estimate.step) == tuple(4 * n * sum(numbers) for n in (1, 2, 1))
    matrices = [*model.blip2.qformer.parameters(), *model.blip2.language_projection.parameters()]
    assert estimate.casts == 2 * sum(each.numel() for each in matrices if each.ndim > 1)
    assert estimate_memory(model.blip2, parts, plan_of(model)).casts == 0
    larger = estimate_memory(model.blip2, parts, replace(plan, batch_size=2 * BATCH))
    assert larger.activations == 2 * estimate.activations


@pytest.mark.parametrize("preset", ["gates_proj", "original_live"])
def test_a_full_cache_sends_the_towers_away(preset) -> None:
    model, _ = build(preset)
    live, cached = (
        weight_bytes(model.blip2, plan_of(model, cached=cached), style_encoder=nn.Linear(3, 5)) for cached in (False, True)
    )
    tower = sum(each.nbytes for each in model.blip2.vision_model.parameters())
    last_norm = sum(each.nbytes for each in model.blip2.vision_model.post_layernorm.parameters())
    assert live - cached == tower - last_norm + 80


@pytest.mark.parametrize(("kind", "per_number"), [("int8", 1.0), ("nf4", 0.5625)])
def test_quantisation_shrinks_the_decoder_layers_only(kind, per_number) -> None:
    model, _ = build("gates", "bf16")
    plain, packed = (weight_bytes(model.blip2, plan_of(model, quant=quant)) for quant in ("none", kind))
    layers = model.blip2.language_model.model.decoder.layers
    numbers = sum(each.weight.numel() for each in layers.modules() if isinstance(each, nn.Linear))
    assert plain - packed == numbers * (2 - per_number)
    assert quantised_bytes(nn.Linear(64, 2), kind) == 128 * per_number


def test_without_training_there_are_weights_only() -> None:
    model, parts = build("frozen")
    estimate = estimate_memory(model.blip2, parts, plan_of(model))
    assert parts == {} and estimate.total == estimate.weights > 0

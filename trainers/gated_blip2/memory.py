"""Memory that training needs, roughly, before it starts: weights by counting, activations by arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainers.gated_blip2.counts import part_of
from trainers.gated_blip2.gate_hooks import cross_attention_layers
from trainers.memory_estimate import FP32_BYTES, MemoryEstimate, cast_bytes, parameter_bytes, training_bytes

__all__ = ["MemoryPlan", "estimate_memory", "quantised_bytes", "weight_bytes"]

# Bytes per number of a quantised Linear: weights, and what scales them (int8: per row, which is nothing; nf4: fp32 per 64).
QUANTISED = {"int8": 1.0, "nf4": 0.5 + FP32_BYTES / 64}
AUTOCAST_PARTS = ("qformer", "language_projection")
TOWERS = ("vision_model",)  # what a full cache sends away; the last LayerNorm, which may train, counts as staying


@dataclass(frozen=True)
class MemoryPlan:
    """What an update does.

    Attributes:
        optimizer: Dassl's name.
        compute_dtype: Of autocast; None without.
        batch_size: Samples of a batch.
        n_text: Text tokens of a sample: start token, prompt, answer.
        n_answer: Of these, those with a loss.
        n_tokens: Tokens of a picture.
        cached: All features come from the cache, so that ViT and style encoder have left the device.
        grad_ckpt: The language model computes its activations again.
        quant: What the language model is to be quantised to; `none` where the model at hand already is, or is not to be.
    """

    optimizer: str
    compute_dtype: torch.dtype | None
    batch_size: int
    n_text: int
    n_answer: int
    n_tokens: int
    cached: bool = False
    grad_ckpt: bool = False
    quant: str = "none"


def estimate_memory(
    blip2: nn.Module,
    parts: Mapping[str, Sequence[tuple[str, nn.Parameter]]],
    plan: MemoryPlan,
    *,
    gates: Sequence[nn.Module] = (),
    style_encoder: nn.Module | None = None,
) -> MemoryEstimate:
    """Estimate what an update needs.

    Args:
        blip2: transformers' `Blip2ForConditionalGeneration`, every part in its type; nothing in it has to be real.
        parts: What trains, as from `trainable_parts`.
        plan: What an update does.
        gates: Conditioner and style source.
        style_encoder: None: there is none.
    """
    pairs = [pair for of_group in parts.values() for pair in of_group]
    run = (each for name, each in blip2.named_parameters() if part_of(name) in AUTOCAST_PARTS)
    return MemoryEstimate(
        weights=weight_bytes(blip2, plan, gates=gates, style_encoder=style_encoder),
        casts=sum(cast_bytes(each, plan.compute_dtype) for each in run),
        activations=_activations(blip2, dict(pairs), plan) if pairs else 0,
        **training_bytes(sum(parameter.numel() for _, parameter in pairs), plan.optimizer),
    )


def weight_bytes(
    blip2: nn.Module, plan: MemoryPlan, *, gates: Sequence[nn.Module] = (), style_encoder: nn.Module | None = None
) -> int:
    """Return the size of all weights on the device; see `estimate_memory`."""
    away = TOWERS if plan.cached else ()
    total = sum(parameter_bytes(each) for name, each in blip2.named_parameters() if part_of(name) not in away)
    modules = [*gates, *([style_encoder] if style_encoder is not None and not plan.cached else [])]
    total += sum(_tensor_bytes(module) for module in modules)
    return total if plan.quant == "none" else total - _saved_by(blip2, plan.quant)


def quantised_bytes(linear: nn.Linear, kind: str) -> int:
    """Return the size of a Linear's weight in `int8` or `nf4`."""
    return int(linear.weight.numel() * QUANTISED[kind])


def _saved_by(blip2: nn.Module, kind: str) -> int:
    linears = _linears(blip2.language_model.model.decoder.layers)
    return sum(parameter_bytes(linear.weight) - quantised_bytes(linear, kind) for linear in linears)


def _linears(module: nn.Module) -> Iterable[nn.Linear]:
    return (each for each in module.modules() if isinstance(each, nn.Linear))


def _tensor_bytes(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


def _activations(blip2: nn.Module, trained: Mapping[str, nn.Parameter], plan: MemoryPlan) -> int:
    """What autograd keeps of a batch; a gradient passes the whole language model, as what trains comes before it."""
    return plan.batch_size * (_language_model_keeps(blip2, plan) + _qformer_keeps(blip2, trained, plan))


def _language_model_keeps(blip2: nn.Module, plan: MemoryPlan) -> int:
    """Return bytes per sample. Frozen maps keep nothing, so per row and layer there are: the inputs of both norms, queries,
    keys, values and their result, and the inner activation. Scores: as computed, in fp32, and their log-softmax."""
    text, dtype = blip2.config.text_config, blip2.language_model.get_input_embeddings().weight.dtype
    width, n_layers = text.hidden_size, text.num_hidden_layers
    rows = blip2.config.num_query_tokens + plan.n_text
    layer = (6 * width + text.ffn_dim) * dtype.itemsize
    kept = n_layers * width * dtype.itemsize + layer if plan.grad_ckpt else n_layers * layer
    return rows * (kept + width * dtype.itemsize) + plan.n_answer * text.vocab_size * (dtype.itemsize + 2 * FP32_BYTES)


def _qformer_keeps(blip2: nn.Module, trained: Mapping[str, nn.Parameter], plan: MemoryPlan) -> int:
    """Return bytes per sample: rows of the queries in every layer, and of the picture where there is cross-attention.

    A map that trains keeps its input too, under autocast a cast of its own; dropouts keep a byte per number. Gated keys and
    values are kept before and after the gate, the picture's tokens once.
    """
    config, queries = blip2.config.qformer_config, blip2.config.num_query_tokens
    stored = blip2.qformer.layernorm.weight.dtype
    norm_size, size = stored.itemsize, (plan.compute_dtype or stored).itemsize
    width, inner, seen = config.hidden_size, config.intermediate_size, config.encoder_hidden_size
    whole = any("output_query" in name for name in trained)
    cross_trains = any("crossattention" in name for name in trained)
    block = 2 * width * norm_size + (4 * width + inner) * size
    if whole:  # inputs of queries, keys and values, of the inner map and of the one after it; two dropouts
        block += ((2 if size == norm_size else 4) * width + inner) * size + 2 * width
    cross = width * norm_size + 2 * width * size + (width * (size + 1) if cross_trains else 0)
    n_cross = len(cross_attention_layers(blip2.qformer))
    tokens = seen * size if cross_trains else 0
    if any("post_layernorm" in name for name in trained):
        tokens += seen * FP32_BYTES
    pictures = plan.n_tokens * (n_cross * 4 * width * size + tokens)
    return queries * (config.num_hidden_layers * block + n_cross * cross) + pictures

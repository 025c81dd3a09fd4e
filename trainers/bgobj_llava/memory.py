"""Memory that training needs, roughly, before it starts."""

from __future__ import annotations

import torch
from torch import nn

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.scopes import Parts, count_parameters
from trainers.memory_estimate import FP32_BYTES, MemoryEstimate, cast_bytes, parameter_bytes, training_bytes


def estimate_memory(
    model: BgObjLlava, parts: Parts, *, optimizer: str, compute_dtype: torch.dtype | None, n_rows: int
) -> MemoryEstimate:
    """Estimate what an update needs.

    Args:
        model: With LoRA layers, if there are to be any; nothing in it has to be real.
        parts: What trains.
        optimizer: Dassl's name.
        compute_dtype: Of autocast; None without.
        n_rows: Tokens of a batch, images included.
    """
    parameters = list(model.parameters())
    n_trained = sum(count_parameters(parts).values())
    return MemoryEstimate(
        weights=sum(parameter_bytes(each) for each in parameters),
        casts=sum(cast_bytes(each, compute_dtype) for each in parameters),
        activations=_activations(model, parts, compute_dtype or model.dtype, n_rows),
        **training_bytes(n_trained, optimizer),
    )


def _activations(model: BgObjLlava, parts: Parts, dtype: torch.dtype, n_rows: int) -> int:
    """Sum over the decoder layers; a gradient reaches all of them, as the projector before them trains."""
    layers = [*model.llava.model.language_model.layers, *(model.fusion.layers if model.fusion is not None else ())]
    trained = {id(parameter) for pairs in parts.values() for _, parameter in pairs}
    kept = [_layer_activations(model, layer, trained, dtype.itemsize) for layer in layers]
    if model.options.grad_ckpt:  # inputs of all layers, and all of the one that is recomputed
        return n_rows * (len(layers) * model.info.d_model * dtype.itemsize + max(kept))
    return n_rows * sum(kept)


def _layer_activations(model: BgObjLlava, layer: nn.Module, trained: set[int], itemsize: int) -> int:
    """Return bytes per token that a decoder layer keeps.

    Both norms keep their input in fp32; attention its queries, keys, values and result; the gate three rows. A map that trains
    keeps its input too, and a LoRA layer what dropout made of it.
    """
    text = model.llava.config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    attention = 2 * head * (text.num_attention_heads + text.num_key_value_heads)
    kept = 2 * width * FP32_BYTES + (attention + 3 * inner) * itemsize
    own = [name for name, parameter in layer.named_parameters() if id(parameter) in trained]
    if any("lora_" in name for name in own):
        return kept + (6 * width + inner) * (FP32_BYTES + itemsize)
    return kept + (2 * width * FP32_BYTES + (2 * width + inner) * itemsize if own else 0)

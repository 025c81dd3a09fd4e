"""The language model in 8 or 4 bits, by bitsandbytes: its Linear layers only, frozen as ever.

Vision tower, Q-Former and projection are never quantised, nor are the language model's embeddings and head.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

KEY = "TRAINER.GATEDBLIP2.QUANT"
KINDS = ("none", "int8", "nf4")
INT8_THRESHOLD = 6.0  # activations above it are multiplied in 16 bits: LLM.int8's own figure


def make_quantiser(kind: str, device: torch.device, compute_dtype: torch.dtype) -> Callable[[nn.Module], None] | None:
    """Return what replaces the Linears of a decoder layer by quantised ones, in place; None if nothing is to be quantised.

    Args:
        kind: `none`, `int8` (LLM.int8) or `nf4`.
        device: Of the model.
        compute_dtype: In which the products are taken with `nf4`.
    Raises:
        RuntimeError: If bitsandbytes is not installed or the device is no GPU, with both reasons if both hold.
        ValueError: If the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"{KEY} is {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    problems = [] if device.type == "cuda" else [f"it needs a GPU and the model is on {device}"]
    try:
        import bitsandbytes
    except ImportError as error:
        problems.append(f"bitsandbytes cannot be imported ({error}); remedy: pip install dassl-vlm[quant]")
    if problems:
        raise RuntimeError(f"{KEY} is {kind!r}: {'; '.join(problems)}; or {KEY} none")

    def quantise(layer: nn.Module) -> None:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, _quantise_linear(bitsandbytes.nn, child, kind, compute_dtype))

    return quantise


def _quantise_linear(library: ModuleType, linear: nn.Linear, kind: str, compute_dtype: torch.dtype) -> nn.Module:
    """Return a quantised copy; bitsandbytes quantises when a weight moves from the CPU to the GPU."""
    sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
    if kind == "int8":
        quantised = library.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=INT8_THRESHOLD)
    else:
        quantised = library.Linear4bit(*sizes, bias=bias, compute_dtype=compute_dtype, quant_type="nf4")
    for name, parameter in linear.named_parameters():
        getattr(quantised, name).data = parameter.data.cpu()
    return quantised.to(linear.weight.device).requires_grad_(False).eval()

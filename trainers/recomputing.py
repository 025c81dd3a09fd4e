"""Less memory for more time: decoder layers that compute their activations twice."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_layers(layers: Iterable[nn.Module]) -> None:
    """Let transformers' decoder layers, in training mode, compute their activations again in the backward pass."""
    for layer in layers:
        layer.gradient_checkpointing = True
        # A reentrant checkpoint gives no gradient to layers behind a frozen input.
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

"""What autograd keeps of a forward pass, as a measure of estimated activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def count_kept_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the bytes that are kept for the backward pass, beside the model's weights and their casts.

    Args:
        model: Is put into training mode.
        run: Does the forward pass.
    """
    shapes = {tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim > 1}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    return sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights)

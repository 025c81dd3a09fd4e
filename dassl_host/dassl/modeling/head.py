"""Heads between a backbone and its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dassl.utils import Registry, check_availability

__all__ = ["HEAD_REGISTRY", "MLP", "build_head", "mlp"]

HEAD_REGISTRY = Registry("HEAD")
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers, each followed by batch norm, activation and dropout as asked.

    Args:
        in_features: Width of the input.
        hidden_layers: Width of each layer (an int is one layer), at least one.
        activation: "relu" or "leaky_relu".
        bn: Whether to normalise before the activation.
        dropout: Probability of dropping a unit; 0 leaves the layer out.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        assert widths, "MODEL.HEAD.HIDDEN_LAYERS is empty; expected at least one width"
        if activation not in _ACTIVATIONS:
            raise NotImplementedError(f"MODEL.HEAD.ACTIVATION is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}")
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.out_features = in_features
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_features) to (B, out_features)."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Return an `MLP`."""
    return MLP(**kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return the head registered as `name`, built from `kwargs`."""
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        print(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)

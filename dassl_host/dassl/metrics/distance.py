"""Pairwise distances between two sets of feature vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]


def compute_distance_matrix(input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean") -> torch.Tensor:
    """Compute all distances between the rows of `input1` (M, D) and of `input2` (N, D).

    Args:
        metric: "euclidean" (squared) or "cosine".
    Returns:
        Distances, (M, N).
    Raises:
        AssertionError: If the inputs are not matrices of equal width.
        ValueError: If the metric is unknown.
    """
    for name, features in (("input1", input1), ("input2", input2)):
        assert isinstance(features, torch.Tensor), f"{name} is {type(features).__name__}; expected a tensor"
        assert features.dim() == 2, f"{name} has {features.dim()} dimensions; expected 2"
    assert input1.size(1) == input2.size(1), f"widths differ: {input1.size(1)} and {input2.size(1)}"
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f"metric is {metric!r}; expected one of euclidean, cosine")


def euclidean_squared_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Compute |a|^2 + |b|^2 - 2ab for all pairs of rows: (M, D), (N, D) -> (M, N)."""
    squared_norms = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    return squared_norms - 2 * input1 @ input2.t()


def cosine_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Compute 1 - cos for all pairs of rows: (M, D), (N, D) -> (M, N)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()

"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["compute_accuracy"]


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Compute the share of items whose label is among the k highest scores.

    Args:
        output: Scores, (B, C); of a tuple or list the first is used.
        target: Labels, (B,), int.
        topk: Values of k, each at most C.
    Returns:
        One tensor of shape (1,) per k, percent.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    ranked = scores.topk(max(topk), dim=1).indices
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].float().sum().reshape(1) * (100.0 / target.size(0)) for k in topk]

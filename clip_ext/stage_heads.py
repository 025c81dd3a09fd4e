"""Trainable readouts and classifiers with one copy per stage, each stage's product batched with the others'."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_ext.towers import VisionTower


class StageReadout(nn.Module):
    """LayerNorm and projection per stage, starting as copies of a tower's final LayerNorm and projection.

    A stage owns D * E + 2 D numbers, fp32, as leaves of its own, so that it can be frozen while another one trains.

    Args:
        tower: Supplies post-LN and projection; it is not changed.
        n_stages: S.
    """

    def __init__(self, tower: VisionTower, n_stages: int) -> None:
        super().__init__()
        norm = tower.norms()["ln_post"]
        with torch.no_grad():
            # The projection is linear, so the unit matrix yields its weight whatever the tower's make.
            projection = tower.project(torch.eye(tower.info.width, dtype=norm.weight.dtype, device=norm.weight.device))
        self.width, self.eps = tower.info.width, norm.eps
        self.scale = _copies(norm.weight, n_stages)  # S x (D,)
        self.shift = _copies(norm.bias, n_stages)  # S x (D,)
        self.weight = _copies(projection, n_stages)  # S x (D, E)

    def scales(self) -> list[nn.Parameter]:
        """Return the LayerNorms' weights, (D,) each."""
        return list(self.scale)

    def shifts(self) -> list[nn.Parameter]:
        """Return the LayerNorms' biases, (D,) each."""
        return list(self.shift)

    def projections(self) -> list[nn.Parameter]:
        """Return the projections, (D, E) each."""
        return list(self.weight)

    def of_stage(self, stage: int) -> list[nn.Parameter]:
        """Return the parameters of one stage, counted from 0."""
        return [self.scale[stage], self.shift[stage], self.weight[stage]]

    def forward(self, x: Tensor) -> Tensor:
        """Map stage tokens (S, B, D), fp32, to the joint space, (S, B, E)."""
        scale, shift, weight = (torch.stack(list(leaves)) for leaves in (self.scale, self.shift, self.weight))
        normed = F.layer_norm(x, (self.width,), eps=self.eps)
        return torch.bmm(torch.addcmul(shift[:, None], normed, scale[:, None]), weight)


def _copies(start: Tensor, count: int) -> nn.ParameterList:
    """Return `count` fp32 leaves that start from the same values."""
    return nn.ParameterList(nn.Parameter(start.detach().clone().float()) for _ in range(count))


class StageClassifiers(nn.Module):
    """One linear classifier per stage, without bias, fp32; the weight waits for a text-trained one.

    Args:
        n_stages: S.
        n_classes: C.
        embed_dim: E.
    """

    def __init__(self, n_stages: int, n_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_stages, n_classes, embed_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Map stage features (S, B, E) to unscaled logits (S, B, C)."""
        return torch.bmm(features, self.weight.transpose(1, 2))

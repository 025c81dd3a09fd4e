"""Aggregate features over the depth of a transformer, then over stages.

Neighbourhood Gaussian Aggregation (NGA) follows Cascade-CLIP (https://arxiv.org/abs/2406.00670): inside a stage, deeper
blocks weigh more, with a Gaussian profile whose width is learned. Different from the paper: weights are normalised by a
softmax, and distances are scaled by 12 / depth so that the profile keeps its shape on deeper towers.
"""

import math
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NGA_MODES = ("gaussian", "free", "mean", "last")
FUSION_MODES = ("softmax", "sum", "last")
FUSION_INITS = ("last", "uniform")

_REFERENCE_DEPTH = 12
# Block tokens below the last are not text-aligned at first, so fusion starts from the deepest stage.
_LAST_STAGE_LOGIT = 2.0


class NeighbourhoodGaussian(nn.Module):
    """Weighted mean of the block features of each stage, all stages at once.

    For the n blocks l_1 < ... < l_n of a stage: delta_k = (n - k + offset) * 12 / depth and
    w = softmax(-delta^2 / (2 sigma^2)), with sigma = softplus(rho) + sigma_min learned per stage. A stage of one block has
    the weight 1 and no parameter.

    Args:
        stages: Block numbers (from 1) of each stage, ascending.
        depth: Blocks of the tower.
        mode: `gaussian`; `free` (one logit per block, starting from the Gaussian profile of sigma 1); `mean`; `last`
            (deepest block only). The last two have no parameters.
        offset: 0 as in Cascade-CLIP's code, 1 as in its formula.
        sigma_init: First sigma of `gaussian`, > sigma_min.
        sigma_min: Lower bound of sigma, > 0.
    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        depth: int,
        mode: str = "gaussian",
        offset: int = 0,
        sigma_init: float = 1.0,
        sigma_min: float = 0.25,
    ) -> None:
        super().__init__()
        _check_arguments(stages, mode, offset, sigma_init, sigma_min)
        self.blocks = tuple(block for stage in stages for block in stage)
        self.mode = mode
        self.sigma_min = sigma_min
        member, delta = _place_blocks(stages, offset, depth, deepest_only=mode == "last")
        self.register_buffer("_member", member, persistent=False)
        self.register_buffer("_delta", delta, persistent=False)
        learned = torch.tensor([row for row, stage in enumerate(stages) if len(stage) > 1], dtype=torch.long)
        self.register_buffer("_learned", learned, persistent=False)  # stages with something to weigh
        if mode == "gaussian" and len(learned):
            self.rho = nn.Parameter(torch.full((len(learned),), _invert_softplus(sigma_init - sigma_min)))
        if mode == "free" and len(learned):
            self.register_buffer("_free", member & (member.sum(dim=1, keepdim=True) > 1), persistent=False)
            self.logits = nn.Parameter(-delta[self._free].square() / 2)

    def sigma(self) -> Tensor:
        """Widths of the stages with more than one block, fp32; of mode `gaussian` only."""
        return F.softplus(self.rho.float()) + self.sigma_min

    def weights(self) -> Tensor:
        """Weight of each block in each stage, (S, K), fp32; rows sum to 1."""
        scores = torch.zeros_like(self._delta)
        if self.mode == "gaussian" and len(self._learned):
            precision = scores.new_zeros(len(scores)).index_copy(0, self._learned, self.sigma() ** -2)
            scores = -self._delta.square() * precision[:, None] / 2
        elif self.mode == "free" and len(self._learned):
            scores = scores.masked_scatter(self._free, self.logits.float())
        return scores.masked_fill(~self._member, float("-inf")).softmax(dim=-1)

    def forward(self, u: Tensor) -> Tensor:
        """Aggregate block features.

        Args:
            u: Features of the blocks in the order of `blocks`, (K, B, E).
        Returns:
            Stage features, (S, B, E), fp32.
        """
        if len(u) != len(self.blocks):
            raise ValueError(f"got features of {len(u)} blocks; expected {len(self.blocks)}: {self.blocks}")
        with torch.autocast(u.device.type, enabled=False):
            return torch.tensordot(self.weights(), u.float(), dims=1)


def _invert_softplus(x: float) -> float:
    """log(exp(x) - 1), without overflow."""
    return x + math.log(-math.expm1(-x))


def _place_blocks(
    stages: Sequence[Sequence[int]], offset: int, depth: int, *, deepest_only: bool
) -> tuple[Tensor, Tensor]:
    """Which of the K blocks belong to which stage, (S, K) bool, and their scaled distance from its end, (S, K)."""
    n_blocks = sum(len(stage) for stage in stages)
    member = torch.zeros(len(stages), n_blocks, dtype=torch.bool)
    delta = torch.zeros(len(stages), n_blocks)
    first = 0
    for row, stage in enumerate(stages):
        end = first + len(stage)
        member[row, end - 1 if deepest_only else first : end] = True
        delta[row, first:end] = torch.arange(len(stage) - 1, -1, -1) + offset
        first = end
    return member, delta * _REFERENCE_DEPTH / depth


def _check_arguments(
    stages: Sequence[Sequence[int]], mode: str, offset: int, sigma_init: float, sigma_min: float
) -> None:
    problems = []
    if not stages or not all(len(stage) for stage in stages):
        problems.append(f"stages are {stages}; each needs at least one block")
    if mode not in NGA_MODES:
        problems.append(f"NGA mode is {mode!r}; expected one of {NGA_MODES}")
    if offset not in (0, 1):
        problems.append(f"NGA offset is {offset}; expected 0 or 1")
    if not 0 < sigma_min < sigma_init:
        problems.append(f"sigma_min is {sigma_min} and sigma_init {sigma_init}; expected 0 < sigma_min < sigma_init")
    if problems:
        raise ValueError("; ".join(problems))


class StageFusion(nn.Module):
    """Combine the logits of all stages into one prediction.

    Args:
        n_stages: Number of stages; with 1 the fusion is the identity and has no parameter.
        mode: `softmax` (learned convex combination), `sum`, or `last` (deepest stage only).
        init: Of `softmax`: `last` starts near the deepest stage, `uniform` from equal weights.
    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, n_stages: int, *, mode: str = "softmax", init: str = "last") -> None:
        super().__init__()
        if n_stages < 1 or mode not in FUSION_MODES or init not in FUSION_INITS:
            raise ValueError(f"stage fusion of {n_stages} stages, mode {mode!r}, init {init!r}; expected at least 1 "
                             f"stage, a mode of {FUSION_MODES}, an init of {FUSION_INITS}")
        self.mode = mode
        fixed = torch.ones(n_stages)
        if mode == "last":
            fixed[:-1] = 0
        self.register_buffer("_fixed", fixed, persistent=False)
        if mode == "softmax" and n_stages > 1:
            beta = torch.zeros(n_stages)
            beta[-1] = _LAST_STAGE_LOGIT if init == "last" else 0.0
            self.beta = nn.Parameter(beta)

    def weights(self) -> Tensor:
        """Weight of each stage, (S,), fp32."""
        return self.beta.float().softmax(dim=0) if hasattr(self, "beta") else self._fixed

    def forward(self, stage_logits: Tensor) -> Tensor:
        """Fuse (S, B, C) -> (B, C), fp32."""
        if len(stage_logits) != len(self._fixed):
            raise ValueError(f"got logits of {len(stage_logits)} stages; expected {len(self._fixed)}")
        with torch.autocast(stage_logits.device.type, enabled=False):
            return torch.tensordot(self.weights(), stage_logits.float(), dims=1)

"""What gates and gradients do over an epoch, summed on their device, so that no batch waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.gated_blip2.gates import LayerFactors
from trainers.parameter_groups import ParameterGroup

__all__ = ["GateFigures", "GateStatistics", "GradientNorms", "compute_divergence"]

SATURATED = 0.9  # |phi| above it has little gradient left where phi is tanh
FACTORS = ("key", "value")  # of a layer; its other parts are added instead of multiplied
PARTS = (*FACTORS, "shift", "key_shift")


@dataclass(frozen=True)
class GateFigures:
    """One part of one layer, over all samples and channels of an epoch.

    Attributes:
        layer: Of the Q-Former, from 1.
        part: `key` or `value`: 1 + phi, 1 = ungated. `shift` or `key_shift`: what is added, 0 = ungated.
        mean, std, min, max: Of that number.
        saturated: Share of factors with |phi| above 0.9; None for what is added.
    """

    layer: int
    part: str
    mean: float
    std: float
    min: float
    max: float
    saturated: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        return asdict(self)


class GateStatistics:
    """Sums over the factors of every training forward; the observer of a `GateContext`.

    Forwards without gradients (validation, probes) are not counted.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[int, str], Tensor] = {}  # of one forward
        self._rows: dict[tuple[int, str], Tensor] = {}  # see `_sum_up`
        self._ungated: dict[tuple[tuple[int, str], ...], Tensor] = {}

    def __call__(self, layer: int, factors: LayerFactors) -> None:
        """Take the factors of one layer, numbered from 1."""
        if not torch.is_grad_enabled():
            return
        found = {(layer, part): getattr(factors, part) for part in PARTS}
        found = {key: tensor.detach() for key, tensor in found.items() if tensor is not None}
        if not self._pending.keys().isdisjoint(found):
            self._flush()  # a new forward has begun
        self._pending |= found

    def figures(self) -> list[GateFigures]:
        """Return what was observed since the last call, by layer and part, and start anew; the device is asked once."""
        self._flush()
        keys = sorted(self._rows, key=lambda key: (key[0], PARTS.index(key[1])))
        rows = torch.stack([self._rows[key] for key in keys]).tolist() if keys else []
        self._rows = {}
        return [_figures(*key, *row) for key, row in zip(keys, rows, strict=True)]

    def _flush(self) -> None:
        """Add one forward; parts of equal shape at once, as on a GPU each kernel costs its launch."""
        by_shape: dict[torch.Size, list[tuple[int, str]]] = {}
        for key, tensor in self._pending.items():
            by_shape.setdefault(tensor.shape, []).append(key)
        for keys in by_shape.values():
            values = torch.stack([self._pending[key] for key in keys]).flatten(1)
            for key, row in zip(keys, _sum_up(values, self._ungated_like(tuple(keys), values)), strict=True):
                self._rows[key] = _merge(self._rows[key], row) if key in self._rows else row
        self._pending = {}

    def _ungated_like(self, keys: tuple[tuple[int, str], ...], values: Tensor) -> Tensor:
        """Return (R, 1): 1 for factors, 0 for what is added; kept, so that a batch sends nothing to the device."""
        if keys not in self._ungated:
            neutral = [[float(part in FACTORS)] for _, part in keys]
            self._ungated[keys] = torch.tensor(neutral, dtype=torch.float64, device=values.device)
        return self._ungated[keys]


def _sum_up(values: Tensor, ungated: Tensor) -> Tensor:
    """Return (R, 6) of values (R, n): count, sum and squares of their distance from `ungated`, min, max, how many saturated."""
    distance = values.double() - ungated
    low, high = distance.aminmax(dim=1)
    saturated = (distance.abs() > SATURATED).sum(dim=1, dtype=torch.float64)
    count = torch.full_like(low, values.shape[1])
    return torch.stack([count, distance.sum(dim=1), distance.square().sum(dim=1), low, high, saturated], dim=1)


def _merge(before: Tensor, row: Tensor) -> Tensor:
    both = before + row
    both[3], both[4] = torch.minimum(before[3], row[3]), torch.maximum(before[4], row[4])
    return both


def _figures(
    layer: int, part: str, count: float, total: float, squares: float, low: float, high: float, saturated: float
) -> GateFigures:
    is_factor, mean = part in FACTORS, total / count
    return GateFigures(
        layer, part, mean + is_factor, max(squares / count - mean**2, 0.0) ** 0.5, low + is_factor, high + is_factor,
        saturated / count if is_factor else None,
    )  # fmt: skip


class GradientNorms:
    """Mean and largest gradient norm of every trainable group over the updates of an epoch.

    Args:
        groups: Of the trainer; a group without gradients has the norm 0.
    """

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self._groups = {group.name: list(group.parameters) for group in groups}
        self._sums: Tensor | None = None  # (groups, 3): sum and maximum of finite norms, and how many were finite

    @torch.no_grad()
    def observe(self) -> None:
        """Take the gradients of an update; a norm that is not finite (fp16 with a scale too large) does not count."""
        if not self._groups:
            return
        norms = torch.stack([_norm(parameters) for parameters in self._groups.values()]).double()
        finite = norms.isfinite()
        norms = torch.where(finite, norms, 0.0)
        row = torch.stack([norms, norms, finite.double()], dim=1)
        if self._sums is not None:
            row, before = row + self._sums, self._sums
            row[:, 1] = torch.maximum(norms, before[:, 1])
        self._sums = row

    def figures(self) -> dict[str, dict[str, float]]:
        """Return group -> `mean`, `max`, and `updates` that count, since the last call, and start anew; {} without any."""
        if self._sums is None:
            return {}
        rows, self._sums = self._sums.tolist(), None
        return {
            name: {"mean": total / max(count, 1), "max": largest, "updates": int(count)}
            for name, (total, largest, count) in zip(self._groups, rows, strict=True)
        }


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    return torch.stack(torch._foreach_norm(gradients)).norm()


def compute_divergence(gated: Tensor, ungated: Tensor) -> Tensor:
    """Return KL(gated || ungated) of the next token, in nats, averaged over positions.

    Args:
        gated, ungated: Logits, (positions, V).
    Returns:
        A scalar, fp32; exactly 0 for equal logits.
    """
    gated, ungated = (F.log_softmax(logits.float(), dim=-1) for logits in (gated, ungated))
    return F.kl_div(ungated, gated, reduction="batchmean", log_target=True)

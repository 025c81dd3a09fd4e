"""Several batches per optimizer update, whatever they weigh.

A mean of batch means would count the only answer token of one batch as much as the thirty of another. A trainer that hands
over summed losses with their weight gets the mean over the whole window instead: eight batches of one sample and two of four
give the same gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["WeightWindow", "WeightedLosses"]


@dataclass(frozen=True)
class WeightedLosses:
    """Summed losses of a batch and what they were summed over.

    Attributes:
        losses: By name; each a sum over the same units, not a mean. Their sum is minimised per unit.
        weight: Number of units (answer tokens, caption tokens, samples), 0 or more. A tensor on the GPU makes the batch wait
            for it.
    """

    losses: Mapping[str, Tensor]
    weight: float | Tensor


class WeightWindow:
    """Weights of the batches in the accumulation window at work.

    Each batch back-propagates its sum over a constant c, the window's first weight above 0, which keeps the gradients in a
    usual range while the total is unknown; at the update they are multiplied by c over the total.

    Attributes:
        constant: c; 0 before the first weight above 0.
        total: Weight so far.
    """

    def __init__(self) -> None:
        self.constant = self.total = 0.0

    def add(self, weight: float | Tensor) -> float:
        """Count a batch and return its weight.

        Raises:
            ValueError: If the weight is negative, infinite or NaN.
        """
        weight = float(weight)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of a batch's losses is {weight}; expected a finite number, 0 or more")
        self.constant = self.constant or weight
        self.total += weight
        return weight

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Turn the accumulated gradients into those of the mean over the window; its total is above 0."""
        factor = self.constant / self.total
        if factor == 1.0:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

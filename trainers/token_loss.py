"""What a language model's loss over a batch is before anything is averaged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenLoss:
    """Loss of a batch.

    Attributes:
        total: Cross-entropy summed over the tokens that are learned (answer or caption), nats, fp32 scalar.
        n_tokens: What it is summed over, end tokens included.
    """

    total: Tensor
    n_tokens: int

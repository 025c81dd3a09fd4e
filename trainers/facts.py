"""Tensors that carry facts about their rows, so that Dassl's stock `test()` feeds every evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FactTensor(Tensor):
    """A tensor that also carries named facts about its rows; the result of any operation on it is a plain tensor.

    Attributes:
        facts: Name -> whatever the class below says.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    facts: Mapping[str, Any]

    @classmethod
    def of(cls, tensor: Tensor, **facts: Any) -> FactTensor:
        """Return `tensor` with facts attached; the memory is shared."""
        found = tensor.as_subclass(cls)
        found.facts = facts
        return found


class Target(FactTensor):
    """Labels of a test batch, (B,), int64, that also carry the rows' other facts.

    A tensor, so that Dassl's stock evaluator takes it as labels; an evaluator that needs more reads `facts`: `index` and
    `impath`; where there are any, `distribution` (B, C), fp32, a row of zeros if absent, and `has_distribution` (B,), 1 for
    given votes, 0 for a synthetic or absent row.
    """


class Scores(FactTensor):
    """Logits of a test batch, (B, C), fp32; `facts["distribution"]` is the predicted distribution, (B, C), rows sum to 1.

    Where training divided the logits by a temperature other than 1, it is `facts["temperature"]`.
    """

"""Bytes by purpose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.memory_estimate import GIB, MemoryEstimate, cast_bytes, parameter_bytes


def test_the_total_is_the_sum_and_is_said_in_gib() -> None:
    estimate = MemoryEstimate(weights=3 * GIB, casts=GIB // 2, gradients=GIB, moments=2 * GIB, activations=GIB // 4)
    assert estimate.total == 6.75 * GIB == estimate.to_dict()["total"]
    assert estimate.describe().startswith("about 6.75 GiB: weights 3.00, casts 0.50, gradients 1.00, moments 2.00")


@pytest.mark.parametrize(
    ("shape", "stored", "compute", "expected"),
    [
        ((4, 8), torch.float32, torch.bfloat16, 64),
        ((4, 8), torch.bfloat16, torch.bfloat16, 0),
        ((8,), torch.float32, torch.bfloat16, 0),
        ((4, 8), torch.float32, None, 0),
    ],
)
def test_autocast_copies_matrices_of_another_type(shape, stored, compute, expected) -> None:
    parameter = nn.Parameter(torch.empty(shape, dtype=stored, device="meta"))
    assert cast_bytes(parameter, compute) == expected
    assert parameter_bytes(parameter) == parameter.numel() * stored.itemsize

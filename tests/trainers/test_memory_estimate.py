"""Bytes by purpose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.memory_estimate import GIB, MemoryEstimate, cast_bytes, parameter_bytes, training_bytes


def test_the_total_is_the_larger_of_backward_pass_and_step() -> None:
    sizes = {"weights": 3 * GIB, "casts": GIB // 2, "gradients": GIB, "moments": 2 * GIB, "activations": GIB // 4}
    estimate = MemoryEstimate(**sizes, step=GIB // 2)
    assert estimate.total == 6.75 * GIB == estimate.to_dict()["total"]
    assert estimate.describe() == (
        "about 6.75 GiB: weights 3.00, casts 0.50, gradients 1.00, moments 2.00, activations 0.25, step 0.50"
    )
    assert MemoryEstimate(**sizes, step=GIB).total == 7 * GIB


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("sgd", 1), ("amsgrad", 3)])
def test_what_trains_is_kept_in_fp32(optimizer, moments) -> None:
    assert training_bytes(10, optimizer) == {"gradients": 40, "moments": 40 * moments, "step": 40}


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

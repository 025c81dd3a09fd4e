"""Memory that training needs, by purpose; what a trainer's own estimate fills in."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

FP32_BYTES = 4
# Numbers that an optimizer of Dassl's keeps per weight.
MOMENTS = {"adam": 2, "adamw": 2, "radam": 2, "amsgrad": 3, "sgd": 1, "rmsprop": 2}
GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose; not in it: what frameworks and kernels take, fragments, the data.

    Attributes:
        weights: All parameters as they are stored.
        casts: Copies of weights in autocast's type, where they are stored in another.
        gradients: Of what trains.
        moments: Of the optimizer.
        activations: Kept for the backward pass.
        step: What the optimizer's step takes for a moment, when casts and activations are gone.
    """

    weights: int
    casts: int
    gradients: int
    moments: int
    activations: int
    step: int

    @property
    def total(self) -> int:
        """The most that is needed at a time: in a backward pass that adds to earlier gradients, or in the step."""
        return self.weights + self.gradients + self.moments + max(self.casts + self.activations, self.step)

    def describe(self) -> str:
        """Return one line in GiB."""
        parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in self.to_dict().items() if name != "total")
        return f"about {self.total / GIB:.2f} GiB: {parts}"

    def to_dict(self) -> dict[str, int]:
        """Return the bytes by name, `total` included."""
        return {**asdict(self), "total": self.total}


def training_bytes(n_trained: int, optimizer: str) -> dict[str, int]:
    """Return what numbers that train in fp32 take: `gradients`, `moments`, and `step` for all at once, as on a GPU.

    Args:
        n_trained: How many.
        optimizer: Dassl's name.
    """
    size = n_trained * FP32_BYTES
    return {"gradients": size, "moments": size * MOMENTS[optimizer], "step": size}


def parameter_bytes(parameter: nn.Parameter) -> int:
    """Return the size of a parameter, of a meta tensor too."""
    return parameter.numel() * parameter.element_size()


def cast_bytes(parameter: nn.Parameter, compute_dtype: torch.dtype | None) -> int:
    """Return the size of autocast's copy of a parameter; 0 without autocast, for its own type, and for vectors.

    Args:
        parameter: A weight that autocast meets.
        compute_dtype: Of autocast; None without.
    """
    if compute_dtype is None or parameter.ndim < 2 or parameter.dtype == compute_dtype:
        return 0
    return parameter.numel() * compute_dtype.itemsize

"""What a training batch is learned from: labels, which of them count, and the distribution of each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TrainingTarget:
    """Targets of B images, all on one device.

    Attributes:
        labels: Class per image, (B,), int64: the data set's or a teacher's.
        counted: Images that take part in the main loss, (B,), bool.
        confidence: Of the label, (B,), fp32, in [0, 1]; 1 for the data set's labels.
        distribution: q of the dual task, (B, C), fp32, rows sum to 1; None without the dual task.
    """

    labels: Tensor
    counted: Tensor
    confidence: Tensor
    distribution: Tensor | None = None

"""Training batches, and what they are learned from: labels, which of them count, and the distribution of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Annotations:
    """What a data set says about B images; only the supervised modes read it.

    Attributes:
        labels: Class per image, (B,), int64.
        votes: Given distributions, (B, C), fp32, a row of zeros if there is none; None if the data set has none at all.
        has_votes: 1 for given votes, else 0, (B,); None together with `votes`.
    """

    labels: Tensor
    votes: Tensor | None = None
    has_votes: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: dict, device: torch.device) -> Annotations:
        """Take label and, where there are any, votes from a batch of Dassl's loader."""
        found = [batch[name].to(device) if name in batch else None for name in ("label", "distribution", "has_distribution")]
        return cls(*found)


@dataclass(frozen=True)
class TrainingBatch:
    """A parsed training batch of B images.

    Attributes:
        images: Views that the student learns from, (B, 3, H, W), or (2 B, 3, H, W): all weak views, then all strong ones.
        weak: Views for an online teacher, (B, 3, H, W); None otherwise.
        index: Positions in the training set, (B,), on the CPU.
        annotations: The data set's; None in a label-free run, which must not see them.
    """

    images: Tensor
    weak: Tensor | None
    index: Tensor
    annotations: Annotations | None


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

    @classmethod
    def of_labels(cls, labels: Tensor, distribution: Tensor | None) -> TrainingTarget:
        """Return the targets of a data set's own labels, (B,): all count, all are certain."""
        certain = torch.ones_like(labels, dtype=torch.float32)
        return cls(labels, certain.bool(), certain, distribution)

    def repeated(self, views: int) -> TrainingTarget:
        """Return the targets of `views` views per image, one view of all images after the other, (views * B, ...)."""
        if views == 1:
            return self
        many = [None if t is None else torch.cat([t] * views) for t in vars(self).values()]
        return TrainingTarget(*many)

"""What a label-free run does with its teacher's probabilities: align, select, report. Nothing here sees a label."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


def align_distribution(probs: Tensor, shares: Tensor, *, rounds: int = 10) -> Tensor:
    """Bend teacher probabilities until the classes get their shares (Sinkhorn).

    A teacher that prefers some classes passes the preference on to its student; knowing the class shares, even only
    roughly, takes it away. Each round scales the columns to the shares and then the rows to 1, so rows are exact and
    columns nearly so.

    Args:
        probs: Rows of probabilities, one per image of the whole set, (N, C).
        shares: Expected share of each class, (C,), > 0; scaled to sum 1 here.
        rounds: Sinkhorn rounds, >= 0.
    Returns:
        Aligned probabilities, (N, C), dtype and device of `probs`.
    Raises:
        ValueError: If the shares are not C positive numbers.
    """
    shares = torch.as_tensor(shares, dtype=torch.float64, device=probs.device)
    if shares.shape != probs.shape[1:] or not bool((shares > 0).all()) or not bool(shares.isfinite().all()):
        raise ValueError(f"CLASS_SHARES is {shares.tolist()}; expected {probs.shape[1]} numbers above 0")
    target = shares / shares.sum() * len(probs)
    # float64 and a floor: the probabilities of a sharp teacher reach 1e-30, and an all-zero column must not become NaN.
    floor = torch.finfo(torch.float64).tiny
    aligned = probs.double()
    for _ in range(rounds):
        aligned = aligned * (target / aligned.sum(dim=0).clamp_min(floor))
        aligned = aligned / aligned.sum(dim=1, keepdim=True).clamp_min(floor)
    return aligned.to(probs.dtype)


def select_above(confidence: Tensor, threshold: float) -> Tensor:
    """Select images by absolute confidence.

    Args:
        confidence: Largest probability per image, (N,), in [0, 1].
        threshold: In [0, 1); 0 keeps all.
    Returns:
        Mask of the kept images, (N,), bool.
    """
    return confidence >= threshold


def select_share_per_class(confidence: Tensor, labels: Tensor, share: float) -> Tensor:
    """Select the most confident images of every pseudo-class.

    Relative to the class, a selection neither empties a hard class nor depends on how sharp the teacher happens to be.

    Args:
        confidence: Largest probability per image, (N,).
        labels: Pseudo-label per image, (N,), long.
        share: Kept share of each class, in (0, 1]; at least one image per occurring class.
    Returns:
        Mask of the kept images, (N,), bool.
    Raises:
        ValueError: If `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share kept per class is {share}; expected a number in (0, 1]")
    kept = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, math.ceil(share * len(members)))
        # Stable, so that equal confidences resolve the same way on every run.
        best = confidence[members].argsort(descending=True, stable=True)[:count]
        kept[members[best]] = True
    return kept


@dataclass(frozen=True)
class LabelReport:
    """Label-free health of one labelling of the training set.

    Attributes:
        mean_confidence: Mean largest probability, in [1/C, 1].
        mean_entropy: Mean entropy of the probabilities, nats, in [0, ln C].
        agreement: Share of images with the teacher's label; None without a teacher.
        change_rate: Share of images whose label differs from the previous one; None at the first labelling.
        histogram: Images per class.
        effective_classes: exp(entropy of the histogram), in [1, C].
    """

    mean_confidence: float
    mean_entropy: float
    agreement: float | None
    change_rate: float | None
    histogram: tuple[int, ...]
    effective_classes: float

    @property
    def collapsed(self) -> bool:
        """Whether the labels use fewer than half of the classes."""
        return self.effective_classes < len(self.histogram) / 2

    @property
    def proxy_score(self) -> float | None:
        """Agreement x share of effective classes: picks an epoch without labels. None without a teacher."""
        if self.agreement is None:
            return None
        return self.agreement * self.effective_classes / len(self.histogram)

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return asdict(self) | {"collapsed": self.collapsed}


def report_labels(
    probs: Tensor, *, teacher_labels: Tensor | None = None, previous_labels: Tensor | None = None
) -> LabelReport:
    """Describe a labelling of the training set without labels.

    Args:
        probs: Student (or teacher) probabilities, (N, C), N >= 1.
        teacher_labels: Labels to agree with, (N,), long.
        previous_labels: The labelling before this one, (N,), long.
    Returns:
        The report.
    """
    probs = probs.detach().float()
    confidence, labels = probs.max(dim=1)
    counts = torch.bincount(labels, minlength=probs.shape[1])
    frequencies = counts.double() / len(labels)
    return LabelReport(
        mean_confidence=confidence.mean().item(),
        mean_entropy=_entropy(probs).mean().item(),
        agreement=None if teacher_labels is None else _agreement(labels, teacher_labels),
        change_rate=None if previous_labels is None else 1 - _agreement(labels, previous_labels),
        histogram=tuple(counts.tolist()),
        effective_classes=_entropy(frequencies).exp().item(),
    )


def _agreement(labels: Tensor, others: Tensor) -> float:
    return (labels == others.to(labels.device)).float().mean().item()


def _entropy(probs: Tensor) -> Tensor:
    """Return the entropy over the last dimension, nats; zeros are legal."""
    return -torch.special.xlogy(probs, probs).sum(dim=-1)

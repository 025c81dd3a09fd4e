"""How well predicted label distributions fit true ones, and how honest confidences are. Pure functions, computed in fp64.

The six distances are those of label distribution learning (Geng, "Label Distribution Learning", TKDE 2016).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Smallest probability inside a logarithm or a denominator.
FLOOR = 1e-12
# Vote shares that differ by less are a tie.
TIE = 1e-6

POSITIVE_EMOTIONS = frozenset({"amusement", "awe", "contentment", "excitement", "joy"})
NEGATIVE_EMOTIONS = frozenset({"anger", "disgust", "fear", "sadness"})
UNPOLAR_EMOTIONS = frozenset({"surprise", "neutral"})


def compute_label_distances(truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Compare distributions row by row.

    With r = (d - p) / (d + p), d the truth and p the prediction: Clark is sqrt(sum r^2), at most sqrt(C), and Canberra
    sum |r|, at most C; `clark_norm` and `canberra_norm` divide by these. 0/0 counts as 0. p is never renormalised.

    Args:
        truth: d, (N, C), rows sum to 1.
        predicted: p, (N, C), rows sum to 1.
    Returns:
        Name -> (N,), fp64: chebyshev, clark, canberra, kl (of d from p, nats), cosine, intersection (both similarities),
        clark_norm, canberra_norm, dist_top1 (1 where the largest p meets a largest d, ties included).
    Raises:
        ValueError: If the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"true distributions are {tuple(truth.shape)}, predicted ones {tuple(predicted.shape)}")
    d, p = truth.double(), predicted.double()
    clipped = p.clamp(min=FLOOR)
    ratio = (d - p) / (d + clipped)
    clark, canberra = ratio.square().sum(dim=-1).sqrt(), ratio.abs().sum(dim=-1)
    top = p.argmax(dim=-1, keepdim=True)
    return {
        "chebyshev": (d - p).abs().amax(dim=-1),
        "clark": clark,
        "canberra": canberra,
        "kl": (torch.xlogy(d, d) - d * clipped.log()).sum(dim=-1),
        "cosine": (d * p).sum(dim=-1) / (d.norm(dim=-1) * p.norm(dim=-1)).clamp(min=FLOOR),
        "intersection": torch.minimum(d, p).sum(dim=-1),
        "clark_norm": clark / d.shape[-1] ** 0.5,
        "canberra_norm": canberra / d.shape[-1],
        "dist_top1": (d.gather(-1, top).squeeze(-1) >= d.amax(dim=-1) - TIE).double(),
    }


def compute_calibration_error(probs: Tensor, labels: Tensor, *, n_bins: int = 15) -> float:
    """Return the expected calibration error: |accuracy - mean confidence| per confidence bin, weighted by its size.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        probs: (N, C), rows sum to 1.
        labels: (N,), class indices.
        n_bins: Bins of equal width over (0, 1], each closed above.
    Returns:
        In [0, 1].
    """
    confidence, predicted = probs.double().max(dim=-1)
    gap = predicted.eq(labels).double() - confidence
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.double)
    bins = torch.bucketize(confidence, edges[1:-1])
    return torch.zeros(n_bins, dtype=torch.double).index_add_(0, bins, gap).abs().sum().item() / len(labels)


def count_confusions(labels: Tensor, predicted: Tensor, n_classes: int) -> Tensor:
    """Return how often each class was taken for each, (C, C), int64: rows are true classes, columns predicted ones."""
    return torch.bincount(labels * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)


def find_polarities(classnames: list[str]) -> Tensor | None:
    """Return +1 for a positive emotion, -1 for a negative one, 0 for one that is neither (surprise, neutral), (C,), int64.

    None if a name is no emotion of these lists, or if only one polarity occurs.
    """
    names = [name.strip().lower() for name in classnames]
    if not set(names) <= POSITIVE_EMOTIONS | NEGATIVE_EMOTIONS | UNPOLAR_EMOTIONS:
        return None
    signs = torch.tensor([(name in POSITIVE_EMOTIONS) - (name in NEGATIVE_EMOTIONS) for name in names])
    return signs if {-1, 1} <= set(signs.tolist()) else None


def compute_polarity_accuracy(labels: Tensor, predicted: Tensor, polarities: Tensor) -> float | None:
    """Return the share of right polarities, in [0, 1], over the images whose true class has one; None if none has.

    A prediction without polarity is wrong there.

    Args:
        labels: (N,), class indices.
        predicted: (N,), class indices.
        polarities: From `find_polarities`, (C,).
    """
    true, guessed = polarities[labels], polarities[predicted]
    polar = true != 0
    return guessed[polar].eq(true[polar]).double().mean().item() if bool(polar.any()) else None

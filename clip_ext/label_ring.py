"""Distributions for hard labels: a Gaussian over the steps between emotions on a ring (called `strategy1` in the configs).

Distances are always counted on a ring of names; typed-in matrices contradict themselves sooner or later. The Mikels ring is the
wheel of Zhao et al., "Predicting Personalized Emotion Perceptions of Social Images", ACM MM 2016; the Emotion6 ring is a
choice of this project, since no canonical wheel of these six exists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

MIKELS_RING = ("amusement", "contentment", "awe", "excitement", "fear", "sadness", "disgust", "anger")
EMOTION6_RING = ("anger", "disgust", "fear", "sadness", "surprise", "joy")


def problems_with_ring(ring: Sequence[str], classnames: Sequence[str]) -> list[str]:
    """Return what keeps `ring` from being a permutation of the classes, one message per kind of fault; empty if it is one.

    Names match whatever their case.
    """
    on_ring, classes = Counter(_key(name) for name in ring), Counter(_key(name) for name in classnames)
    faults = {
        "twice on the ring": [name for name, count in on_ring.items() if count > 1],
        "missing on the ring": [name for name in classes if name not in on_ring],
        "no class of the data set": [name for name in on_ring if name not in classes],
    }
    return [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]


def ring_distances(ring: Sequence[str], classnames: Sequence[str]) -> Tensor:
    """Return the steps between classes along the ring, the shorter way round.

    Args:
        ring: All class names in ring order; the last one is the first one's neighbour.
        classnames: In label order.
    Returns:
        (C, C), int64, symmetric, zeros on the diagonal, at most C // 2.
    Raises:
        ValueError: If the ring is no permutation of the classes.
    """
    problems = problems_with_ring(ring, classnames)
    if problems:
        raise ValueError(f"the ring {list(ring)} is no permutation of the classes; {'; '.join(problems)}")
    place = {_key(name): position for position, name in enumerate(ring)}
    positions = torch.tensor([place[_key(name)] for name in classnames])
    steps = (positions[:, None] - positions[None, :]).abs()
    return torch.minimum(steps, len(classnames) - steps)


def ring_distribution(labels: Tensor, distances: Tensor, *, sigma: float, epsilon: float) -> Tensor:
    """Return q with q_i proportional to phi(distance(i, y)) + epsilon / C, phi the normal density of width sigma.

    Args:
        labels: y, (B,), int64, in 0 .. C-1.
        distances: From `ring_distances`, (C, C).
        sigma: In ring steps, > 0.
        epsilon: Mass that all classes share before normalisation, >= 0.
    Returns:
        (B, C), fp32, on the device of `labels`, rows sum to 1.
    """
    steps = distances.to(labels.device)[labels].double()
    density = torch.exp(-(steps**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    mass = density + epsilon / distances.shape[1]
    return (mass / mass.sum(dim=1, keepdim=True)).float()


def _key(name: str) -> str:
    return name.strip().casefold()

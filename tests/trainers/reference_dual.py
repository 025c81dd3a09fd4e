"""The dual task a second time, from its formulas, one image and one class at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dual:
    """What a replayed run's dual task was configured with."""

    lam: float = 0.8
    temperature: float = 1.0
    kind: str = "ce"  # ce | kl
    by_label: tuple[tuple[float, ...], ...] = ()  # q of each label
    by_image: tuple[tuple[float, ...], ...] = ()  # q of each training image, before by_label


def ring_q(ring: tuple[str, ...], classes: tuple[str, ...], sigma: float, epsilon: float) -> tuple[tuple[float, ...], ...]:
    """Return q of every label: a Gaussian over the steps that a walk on the ring takes."""
    rows = []
    for label in classes:
        mass = []
        for name in classes:
            steps, place = 0, ring.index(label)
            while ring[(place + steps) % len(ring)] != name and ring[(place - steps) % len(ring)] != name:
                steps += 1
            phi = math.exp(-(steps**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
            mass.append(phi + epsilon / len(classes))
        rows.append(tuple(value / sum(mass) for value in mass))
    return tuple(rows)


def dual_loss(logits: Tensor, labels: Tensor, counted: Tensor, index: Tensor, smoothing: float, dual: Dual) -> Tensor:
    """Mean over the images that count of tau^2 * [CE or KL](t, softmax(f / tau))."""
    total, n_classes, tau = logits.sum() * 0, logits.shape[1], dual.temperature
    for row, label, counts, place in zip(logits, labels.tolist(), counted.tolist(), index.tolist(), strict=True):
        if not counts:
            continue
        q = dual.by_image[place] if dual.by_image else dual.by_label[label]
        log_probs = row / tau - (row / tau).exp().sum().log()
        for number in range(n_classes):
            hard = (1 - smoothing) * (number == label) + smoothing / n_classes
            t = (1 - dual.lam) * hard + dual.lam * q[number]
            total = total - tau**2 * t * log_probs[number]
            if dual.kind == "kl" and t > 0:
                total = total + tau**2 * t * math.log(t)
    return total / max(int(counted.sum()), 1)


def known_labels(labels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a data set's labels, all of which count."""
    return torch.tensor(labels), torch.ones(len(labels), dtype=torch.bool)

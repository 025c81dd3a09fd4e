"""Pseudo-labels: who gives them, which of them count, and the cache of labels that never change.

A *whole-set* teacher labels the training set at once, so that its class shares can be aligned; an *online* teacher labels each
batch. Nothing here reads a label of the data set, and nothing moves a global random state: a cold, a warm and a resumed run
see the same labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from clip_ext.pseudo_labels import align_distribution, select_above, select_share_per_class
from clip_ext.tensor_cache import cached_tensors

logger = logging.getLogger(__name__)

# Raise when labels of the same inputs change, so that older cache files are not read.
CODE_VERSION = 1


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of some images, on one device.

    Attributes:
        labels: Class per image, (N,), int64.
        confidence: Probability of that class after alignment, (N,), fp32.
        counted: Images that take part in the main loss, (N,), bool.
    """

    labels: Tensor
    confidence: Tensor
    counted: Tensor


@dataclass(frozen=True)
class SelectionRule:
    """Which pseudo-labels count.

    Attributes:
        shares: Class shares to align the whole set with, (C,); None: no alignment.
        threshold: Lowest confidence, absolute.
        keep_share: Share of each pseudo-class that counts, the most confident first.
    """

    shares: Tensor | None = None
    threshold: float = 0.0
    keep_share: float = 1.0

    def align(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (labels, confidence), both (N,), for the teacher's probabilities (N, C)."""
        if self.shares is not None:
            probs = align_distribution(probs, self.shares)
        confidence, labels = probs.max(dim=1)
        return labels, confidence

    def select(self, labels: Tensor, confidence: Tensor) -> PseudoLabels:
        """Mark the labels that count."""
        counted = select_above(confidence, self.threshold)
        if self.keep_share < 1.0:
            counted = counted & select_share_per_class(confidence, labels, self.keep_share)
        return PseudoLabels(labels, confidence, counted)


class PseudoTeacher(Protocol):
    """What the training loop asks of any teacher."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare the labels of an epoch, counted from 0."""

    def label(self, index: Tensor, weak: Tensor | None) -> PseudoLabels:
        """Label a batch: positions in the training set (B,) and, for an online teacher, weak views (B, 3, H, W)."""


class WholeSetTeacher:
    """Labels of the whole training set, made before the first epoch or before every epoch.

    Args:
        make: Epoch (from 0) -> labels of the set in file order, on the CPU.
        every_epoch: Make them again before each epoch (teacher `self`).
    """

    def __init__(self, make: Callable[[int], PseudoLabels], *, every_epoch: bool) -> None:
        self._make = make
        self._every_epoch = every_epoch
        self._current: PseudoLabels | None = None

    def start_epoch(self, epoch: int) -> None:
        """See `PseudoTeacher`."""
        if self._current is None or self._every_epoch:
            self._current = self._make(epoch)
            counted = self._current.counted
            logger.info(
                "Pseudo-labels: %d images, %d count (%.1f%%)", len(counted), counted.sum(), 100 * counted.float().mean()
            )

    def label(self, index: Tensor, weak: Tensor | None) -> PseudoLabels:
        """See `PseudoTeacher`."""
        current = self._current
        return PseudoLabels(current.labels[index], current.confidence[index], current.counted[index])


class OnlineTeacher:
    """Labels of each batch from its weak view, through weights that may move.

    Args:
        predict: Weak views (B, 3, H, W) -> probabilities (B, C).
        rule: Only its absolute threshold applies; alignment needs the whole set.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], rule: SelectionRule) -> None:
        self._predict = predict
        self._rule = rule

    def start_epoch(self, epoch: int) -> None:
        """See `PseudoTeacher`; there is nothing to prepare."""

    def label(self, index: Tensor, weak: Tensor | None) -> PseudoLabels:
        """See `PseudoTeacher`."""
        return self._rule.select(*self._rule.align(self._predict(weak)))


@torch.no_grad()
def predict_all(batches: Iterable[dict], predict: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Return the probabilities of all images in loader order, (N, C), on the CPU."""
    return torch.cat([predict(batch["img"].to(device)).float().cpu() for batch in batches])


def resolve_shares(align: str, class_shares: Sequence[float], n_classes: int) -> Tensor | None:
    """Return the class shares that `DIST_ALIGN` asks for, (C,), or None without alignment."""
    if align == "none":
        return None
    if align == "uniform":
        logger.info("DIST_ALIGN uniform takes the %d classes to be equally frequent", n_classes)
        return torch.full((n_classes,), 1.0 / n_classes)
    return torch.tensor(list(class_shares), dtype=torch.float32)


def label_key(
    *,
    weights: str,
    modules: Sequence[str],
    classifier: Tensor,
    preprocessing: str,
    paths: Sequence[str],
    root: str,
    shares: Tensor | None,
    precision: str,
) -> str:
    """Return the hash of all that determines frozen labels, 64 hex digits.

    Args:
        weights: Fingerprint of the CLIP.
        modules: Kinds of its modules: equal weights under another activation are another tower.
        classifier: A_pl, (C, E).
        preprocessing: Text form of the weak view.
        paths: Image files in the order of the labels; their sizes in bytes are read here.
        root: Folder that the paths are taken relative to, so that a moved data root is no miss.
        shares: Class shares of the alignment.
        precision: In which the tower runs.
    """
    digest = hashlib.sha256()
    head = {
        "code": CODE_VERSION,
        "weights": weights,
        "modules": list(modules),
        "preprocessing": preprocessing,
        "precision": precision,
        "shares": None if shares is None else shares.tolist(),
    }
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(classifier.detach().float().cpu().contiguous().numpy().tobytes())
    for path in paths:
        digest.update(f"{Path(os.path.relpath(path, root)).as_posix()}\t{os.path.getsize(path)}\n".encode())
    return digest.hexdigest()


def cached_labels(folder: str | Path, key: str, count: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (labels, confidence), both (N,), from the cache, or make and store them.

    Args:
        folder: Of the cache files.
        key: What `label_key` returned.
        count: N, number of images.
        make: Called on a miss.
    """

    def is_valid(tensors: dict[str, Tensor]) -> bool:
        return tensors["labels"].shape == (count,) and tensors["confidence"].shape == (count,)

    found = cached_tensors(
        Path(folder) / f"pseudo_labels-{key}.safetensors",
        lambda: dict(zip(("labels", "confidence"), make(), strict=True)),
        is_valid=is_valid,
        content="pseudo-labels",
    )
    return found["labels"], found["confidence"]

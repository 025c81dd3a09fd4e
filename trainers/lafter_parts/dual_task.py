"""The dual task of the LaFTer family: learn a class and a distribution over the classes together.

Yang, She, Sun, "Joint Image Emotion Classification and Distribution Learning via Deep Convolutional Neural Network", IJCAI
2017. The distribution q of an image is its votes, or a Gaussian around its label on a ring of emotions (`strategy1`). This
file decides which of the two an image gets, and turns the `DUAL` keys into a loss and a predicted distribution.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from clip_ext.label_ring import problems_with_ring, ring_distances, ring_distribution
from clip_ext.losses import distribution_loss, predict_distribution, soft_targets, two_head_loss
from trainers.lafter_parts.targets import Annotations, TrainingTarget

logger = logging.getLogger(__name__)


class SyntheticDistributions:
    """Distributions by label alone (`strategy1`), or none, if the classes are on no ring.

    Args:
        node: The `DUAL` keys.
        ring: Of the data set; `DUAL.RING` overrides it.
        classnames: C names in label order.
    """

    def __init__(self, node: CfgNode, ring: Sequence[str], classnames: Sequence[str]) -> None:
        ring = tuple(node.RING) or tuple(ring)
        self.problem = _ring_problem(ring, classnames)
        self._by_label: Tensor | None = None
        if not self.problem:
            distances = ring_distances(ring, classnames)
            labels = torch.arange(len(classnames))
            self._by_label = ring_distribution(labels, distances, sigma=node.SIGMA, epsilon=node.EPSILON)

    def __bool__(self) -> bool:
        return self._by_label is not None

    def of(self, labels: Tensor) -> Tensor:
        """Return q by label, (B, C), on the device of `labels`."""
        return self._by_label.to(labels.device)[labels]

    def complete(self, facts: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """Return the facts of a test batch with a synthetic row wherever a labelled image, (B,), has no votes."""
        if not self:
            return facts
        known = (labels >= 0)[:, None]
        synthetic = torch.where(known, self.of(labels.clamp_min(0)), 0.0)
        if "distribution" not in facts:
            return facts | {"distribution": synthetic, "has_distribution": torch.zeros_like(labels)}
        voted = facts["has_distribution"].bool()[:, None]
        return facts | {"distribution": torch.where(voted, facts["distribution"], synthetic)}


class DualTask:
    """Loss and prediction of class and distribution.

    Args:
        node: The `DUAL` keys.
        synthetic: Distributions by label.
        n_classes: C.
    """

    def __init__(self, node: CfgNode, synthetic: SyntheticDistributions, n_classes: int) -> None:
        self._node = node
        self._synthetic = synthetic
        self._n_classes = n_classes

    def of_labels(self, labels: Tensor) -> Tensor:
        """Return q of labels alone, (B, C); all that a label-free run may use."""
        return self._synthetic.of(labels)

    def of_annotations(self, given: Annotations) -> Tensor:
        """Return q of a batch, (B, C): votes, or what `STRATEGY` and `MISSING` put in their place."""
        if self._node.STRATEGY == "strategy1":
            return self._synthetic.of(given.labels)
        if given.votes is None:
            return self._replacement(given.labels)
        voted = given.has_votes.bool()
        if voted.all():
            return given.votes
        return torch.where(voted[:, None], given.votes, self._replacement(given.labels))

    def _replacement(self, labels: Tensor) -> Tensor:
        if self._node.MISSING == "onehot":
            return F.one_hot(labels, self._n_classes).float()
        return self._synthetic.of(labels)

    def loss(
        self, logits: Tensor, distribution_logits: Tensor | None, target: TrainingTarget, *, smoothing: float
    ) -> Tensor:
        """Return L_main; see `LaFTer.main_loss`.

        With a head of its own, the distribution is compared by KL; otherwise by `LOSS`.
        """
        node = self._node
        if node.HEADS == "dual":
            classes = soft_targets(target.labels, self._n_classes, smoothing=smoothing)
            return two_head_loss(
                logits,
                distribution_logits,
                classes,
                target.distribution,
                lam=node.LAMBDA,
                temperature=node.TEMPERATURE,
                mask=target.counted,
            )
        mixed = soft_targets(
            target.labels, self._n_classes, smoothing=smoothing, distribution=target.distribution, lam=node.LAMBDA
        )
        return distribution_loss(logits, mixed, temperature=node.TEMPERATURE, kind=node.LOSS, mask=target.counted)

    @property
    def class_temperature(self) -> float:
        """What class logits were divided by in training: 1 where the distribution has a head of its own."""
        return 1.0 if self._node.HEADS == "dual" else self._node.TEMPERATURE

    def predict(self, logits: Tensor, distribution_logits: Tensor | None) -> Tensor:
        """Return the predicted distribution, (B, C), at the temperature of training."""
        judged = logits if distribution_logits is None else distribution_logits
        return predict_distribution(judged, self._node.TEMPERATURE)

    def data_problems(self, items: Sequence[Any], *, label_free: bool) -> list[str]:
        """Count where the q of the training images come from, log it, and return what makes training impossible.

        Args:
            items: Of the training set.
            label_free: q comes from pseudo-labels, whatever votes there are.
        """
        if label_free:
            return self._ring_problems(len(items), votes_would_do=False)
        problems = [
            f"distribution of {item.impath} has {len(_extra(item, 'distribution', ()))} values; expected {self._n_classes}"
            for item in items
            if _extra(item, "has_distribution", 0) and len(_extra(item, "distribution", ())) != self._n_classes
        ][:1]
        counts, first_missing = self._count_sources(items)
        logger.info(
            "Distributions of %d training images: %d votes, %d synthetic (strategy1), %d missing%s",
            len(items), counts["votes"], counts["synthetic"], counts["missing"],
            " (one-hot labels instead)" if counts["missing"] else "",
        )  # fmt: skip
        if counts["missing"] and self._node.MISSING == "error":
            problems.append(
                f"{counts['missing']} training image(s) have no distribution, e.g. {first_missing}; DUAL.MISSING is 'error', "
                "expected strategy1 or onehot"
            )
        return problems + self._ring_problems(counts["synthetic"], votes_would_do=self._node.STRATEGY == "json")

    def _ring_problems(self, synthetic_count: int, *, votes_would_do: bool) -> list[str]:
        if not synthetic_count or self._synthetic:
            return []
        way_out = f" (or DUAL.MISSING to onehot: {synthetic_count} training images have no votes)" if votes_would_do else ""
        return [self._synthetic.problem + way_out]

    def _count_sources(self, items: Sequence[Any]) -> tuple[Counter, str]:
        """Return how many q are `votes`, `synthetic` or `missing`, and the path of the first missing one."""
        counts, first = Counter(), ""
        for item in items:
            voted = bool(_extra(item, "has_distribution", 0))
            if self._node.STRATEGY == "strategy1" or (not voted and self._node.MISSING == "strategy1"):
                counts["synthetic"] += 1
            elif voted:
                counts["votes"] += 1
            else:
                first = first or item.impath
                counts["missing"] += 1
        return counts, first


def _extra(item: Any, name: str, default: Any) -> Any:
    return getattr(item, "extras", {}).get(name, default)


def _ring_problem(ring: Sequence[str], classnames: Sequence[str]) -> str:
    """Return why no distances can be counted, or nothing."""
    if not ring:
        return "the data set has no emotion ring, which strategy1 needs; set DUAL.RING to all class names in ring order"
    faults = problems_with_ring(ring, classnames)
    if not faults:
        return ""
    return f"DUAL.RING (or the data set's ring) {list(ring)} is no permutation of the classes; {'; '.join(faults)}"

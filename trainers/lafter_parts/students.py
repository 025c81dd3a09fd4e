"""The tuned model of the LaFTer family: a frozen CLIP tower with prompts, its own LayerNorms and a text-trained classifier.

A student drives the CLIP's own blocks and never copies them. Its `adapt` holds exactly what trains, the tower's LayerNorms by
reference, so Dassl's checkpoints hold nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_ext.heads import LogitScale, TextClassifier
from clip_ext.towers import TowerInfo, build_tower
from clip_ext.vision import ExtendedVisionTransformer
from trainers.precision import full_precision


@dataclass
class Prediction:
    """What a student says about B images; train and test read the same.

    Attributes:
        logits: (B, C), fp32.
        stage_logits: Before fusion, (S, B, C), fp32; S = 1 without stages.
        features: Final image features, (B, E), fp32, not normalised.
        distribution_logits: Of the distribution's own head, (B, C), fp32; None if one head serves both tasks.
    """

    logits: Tensor
    stage_logits: Tensor
    features: Tensor
    distribution_logits: Tensor | None = None


def prompt_bound(info: TowerInfo) -> float:
    """Return v of the prompts' initial U(-v, v): sqrt(6 / (3 p^2 + D)), LaFTer's rule for patch size p, width D."""
    return math.sqrt(6.0 / (3 * info.patch_size**2 + info.width))


class Adapt(nn.Module):
    """Everything that trains, and nothing else.

    Args:
        info: Sizes of the tower.
        norms: LayerNorms of the tower that reach the loss, by reference.
        classifier: Of unit or raw features; None if a child brings another one.
        prompt_tokens: P, rows of `prompts`; 0 = none.
        scale_init: First logit scale; None: features are not normalised and there is no scale.
        distribution_classifier: Head of the distribution; None if `classifier` serves both tasks.
    """

    def __init__(
        self,
        info: TowerInfo,
        norms: dict[str, nn.LayerNorm],
        classifier: nn.Module,
        *,
        prompt_tokens: int,
        scale_init: float | None,
        distribution_classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        bound = prompt_bound(info)
        self.prompts = nn.Parameter(torch.empty(prompt_tokens, info.width).uniform_(-bound, bound)) if prompt_tokens else None
        self.norms = nn.ModuleDict({name.replace(".", "_"): norm for name, norm in norms.items()})
        self.classifier = classifier
        self.distribution_classifier = distribution_classifier
        self.logit_scale = None if scale_init is None else LogitScale(scale_init)

    def heads(self) -> list[nn.Parameter]:
        """Return the parameters of all linear classifiers."""
        heads = [self.classifier] if self.distribution_classifier is None else [self.classifier, self.distribution_classifier]
        return [p for head in heads for p in head.parameters()]

    def scalars(self) -> list[nn.Parameter]:
        """Return the few numbers that weigh or scale, all without weight decay."""
        return [] if self.logit_scale is None else list(self.logit_scale.parameters())


class LaFTerStudent(nn.Module):
    """CLIP tower with shallow prompts and a linear classifier on its final feature.

    Args:
        visual: The CLIP's vision tower, frozen; its LayerNorms become trainable.
        n_classes: C.
        prompt_tokens: P shallow prompts after CLS; 0 = none.
        scale_init: First logit scale on unit features; None: raw features, no scale (LaFTer as published).
        checkpoint: Recompute blocks in the backward pass.
        distribution_head: Give the distribution of the dual task a classifier of its own, (C, E).
    """

    def __init__(
        self,
        visual: nn.Module,
        n_classes: int,
        *,
        prompt_tokens: int = 50,
        scale_init: float | None = None,
        checkpoint: bool = False,
        distribution_head: bool = False,
    ) -> None:
        super().__init__()
        self.driver = ExtendedVisionTransformer(build_tower(visual))
        self.checkpoint = checkpoint
        tower = self.driver.tower
        size = (n_classes, tower.info.embed_dim)
        self.adapt = Adapt(
            tower.info,
            tower.norms(),
            TextClassifier(*size),
            prompt_tokens=prompt_tokens,
            scale_init=scale_init,
            distribution_classifier=TextClassifier(*size) if distribution_head else None,
        )

    @property
    def info(self) -> TowerInfo:
        """Sizes of the tower."""
        return self.driver.tower.info

    @property
    def prompts(self) -> dict[int, Tensor] | None:
        """Prompts by the block they enter at, as the driver takes them."""
        return None if self.adapt.prompts is None else {1: self.adapt.prompts}

    def forward(self, images: Tensor) -> Prediction:
        """Classify normalised images, (B, 3, H, W), through prompts and classifier."""
        features = self.driver(images, prompts=self.prompts, checkpoint=self._recomputes(), cls_only_last=True).features
        with full_precision(images.device):
            features = features.float()
            judged = self.normalised(features)
            logits = self.scaled(self.adapt.classifier(judged))
            distribution_logits = self.distribution_logits(judged)
        return Prediction(logits, logits[None], features, distribution_logits)

    def _recomputes(self) -> bool:
        return self.checkpoint and torch.is_grad_enabled()

    def normalised(self, features: Tensor) -> Tensor:
        """Return unit features (..., E), or the features as they are if the student has no logit scale."""
        return features if self.adapt.logit_scale is None else F.normalize(features, dim=-1)

    def scaled(self, logits: Tensor) -> Tensor:
        """Multiply logits by the learned scale, if there is one."""
        return logits if self.adapt.logit_scale is None else logits * self.adapt.logit_scale()

    def distribution_logits(self, features: Tensor) -> Tensor | None:
        """Return what the distribution's own head says about features (..., E) as `classifier` takes them; None without it."""
        head = self.adapt.distribution_classifier
        return None if head is None else self.scaled(head(features))

    def plain_features(self, images: Tensor) -> Tensor:
        """Return unit features without prompts, last block only, (B, E), fp32: what the text classifier was trained for."""
        return F.normalize(self.driver(images, cls_only_last=True).features.float(), dim=-1)

    def text_classifier_weight(self) -> Tensor:
        """Return the weight that judges plain features, (C, E)."""
        return self.adapt.classifier.weight

    @torch.no_grad()
    def set_classifier(self, weight: Tensor) -> None:
        """Take over a text-trained weight, (C, E); the distribution's own head starts from it, too."""
        self.adapt.classifier.weight.copy_(weight)
        if self.adapt.distribution_classifier is not None:
            self.adapt.distribution_classifier.weight.copy_(weight)

    def stage_weights(self) -> dict[str, list]:
        """Return the weights inside and between stages as plain numbers for the report; empty without stages."""
        return {}

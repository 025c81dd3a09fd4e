"""HybridCascadeLaFTer: LaFTer on the features of three transformer stages instead of the last block alone.

Fifty shallow prompts as in LaFTer (https://arxiv.org/abs/2305.18287); the CLS tokens of blocks 5-12 go through CLIP's own
post-LN and projection, are aggregated inside each stage by a neighbourhood Gaussian (Cascade-CLIP,
https://arxiv.org/abs/2406.00670), judged by LaFTer's one text-trained classifier, and fused. Unlike the segmentation paper, it
reads CLS instead of patches and has no decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from yacs.config import CfgNode

from clip_ext.aggregation import NeighbourhoodGaussian, StageFusion
from clip_ext.losses import consistency_loss
from clip_ext.stage_heads import StageClassifiers, StageReadout
from clip_ext.stages import resolve_stages, to_legacy
from trainers.base import ParameterGroup
from trainers.lafter import LaFTer
from trainers.precision import full_precision
from trainers.students import LaFTerStudent, Prediction
from trainers.targets import TrainingTarget


class HybridCascadeStudent(LaFTerStudent):
    """LaFTer's student that reads K intermediate CLS tokens in S stages.

    Args:
        visual: See `LaFTerStudent`.
        n_classes: C.
        stages: 1-based block numbers of each stage, shallow to deep.
        readout: `shared`: CLIP's own post-LN and projection, then aggregation; `stage`: aggregation, then a trainable copy of
            both per stage.
        stage_classifier: `shared`, or `copy`: one trainable copy of the text classifier per stage.
        aggregation: Further arguments of `NeighbourhoodGaussian`.
        fusion: Arguments of `StageFusion`.
        student: Further arguments of `LaFTerStudent`.
    """

    def __init__(
        self,
        visual: nn.Module,
        n_classes: int,
        *,
        stages: tuple[tuple[int, ...], ...],
        readout: str = "shared",
        stage_classifier: str = "shared",
        aggregation: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        **student: Any,
    ) -> None:
        super().__init__(visual, n_classes, **student)
        self.stages = stages
        adapt, info = self.adapt, self.info
        adapt.nga = NeighbourhoodGaussian(stages, depth=info.depth, **(aggregation or {}))
        adapt.fusion = StageFusion(len(stages), **(fusion or {}))
        adapt.readout = StageReadout(self.driver.tower, len(stages)) if readout == "stage" else None
        if adapt.readout is not None:
            del adapt.norms["ln_post"]  # CLIP's own is not on the way to the loss
        if stage_classifier == "copy":
            adapt.classifier = StageClassifiers(len(stages), n_classes, info.embed_dim)

    def forward(self, images: Tensor) -> Prediction:
        """Classify normalised images, (B, 3, H, W)."""
        features, tokens = self._encode(images)
        blocks = tokens if self.adapt.readout is not None else self._project(tokens)
        with full_precision(images.device):
            stage_features = self.adapt.nga(blocks.float())  # (S, B, D or E)
            if self.adapt.readout is not None:
                stage_features = self.adapt.readout(stage_features)
            stage_logits = self.scaled(self.adapt.classifier(self.normalised(stage_features)))
            logits = self.adapt.fusion(stage_logits)
        return Prediction(logits, stage_logits, features.float())

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return final features (B, E) and the CLS tokens of the K stage blocks, (K, B, D)."""
        output = self.driver(
            images, prompts=self.prompts, taps=self.adapt.nga.blocks, checkpoint=self._recomputes(), cls_only_last=True
        )
        return output.features, torch.stack([output.taps[block] for block in self.adapt.nga.blocks])

    def _project(self, tokens: Tensor) -> Tensor:
        return self.driver.tower.project(self.driver.tower.post(tokens))

    def forward_with_intermediates(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return final features (B, E) and the K intermediate features, each (B, E), through CLIP's own projection."""
        features, tokens = self._encode(images)
        return features, list(self._project(tokens))

    @property
    def extraction_indices(self) -> list[int]:
        """Blocks that are read, counted from 0 (compatibility; everything else counts from 1)."""
        return to_legacy(self.stages)[1]

    @property
    def stage_boundaries(self) -> list[list[int]]:
        """Stages as positions in `extraction_indices` (compatibility)."""
        return to_legacy(self.stages)[0]

    def text_classifier_weight(self) -> Tensor:
        """See `LaFTerStudent`; with a copy per stage, the deepest stage's."""
        weight = self.adapt.classifier.weight
        return weight if weight.ndim == 2 else weight[-1]

    @torch.no_grad()
    def stage_weights(self) -> dict[str, list]:
        """See `LaFTerStudent`."""
        members = [[self.adapt.nga.blocks.index(block) for block in stage] for stage in self.stages]
        weights = self.adapt.nga.weights().tolist()
        return {
            "stages": [list(stage) for stage in self.stages],
            "fusion": self.adapt.fusion.weights().tolist(),
            "nga": [[row[position] for position in positions] for row, positions in zip(weights, members, strict=True)],
        }


@TRAINER_REGISTRY.register()
class HybridCascadeLaFTer(LaFTer):
    """LaFTer with stage aggregation, stage fusion and consistency between stages."""

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        problems, name = super().config_problems(cfg), f"TRAINER.{self.node_name()}"
        node = cfg.TRAINER[self.node_name()]
        if node.NGA_SIGMA_INIT <= node.NGA_SIGMA_MIN:
            problems.append(
                f"{name}.NGA_SIGMA_INIT is {node.NGA_SIGMA_INIT}; expected more than NGA_SIGMA_MIN {node.NGA_SIGMA_MIN}"
            )
        return problems

    def build_student(self) -> HybridCascadeStudent:
        """See `LaFTer`."""
        node = self.settings
        return HybridCascadeStudent(
            self.clip.model.visual,
            self.num_classes,
            stages=resolve_stages("hybrid", self.clip.info.depth, scheme=node.STAGE_SCHEME, stages=node.STAGES),
            readout=node.READOUT,
            stage_classifier=node.STAGE_CLASSIFIER,
            aggregation={
                "mode": node.NGA_MODE,
                "offset": node.NGA_OFFSET,
                "sigma_init": node.NGA_SIGMA_INIT,
                "sigma_min": node.NGA_SIGMA_MIN,
            },
            fusion={"mode": node.FUSION, "init": node.FUSION_INIT},
            prompt_tokens=node.PROMPT_TOKENS,
            scale_init=node.SCALE_INIT if node.FEAT_NORM == "l2" else None,
            checkpoint=node.GRAD_CKPT,
        )

    def trainable_groups(self) -> list[ParameterGroup]:
        """See `LaFTer`; adds the weights inside and between stages, and the stage readouts."""
        node, adapt, decay = self.settings, self.student.adapt, self.cfg.OPTIM.WEIGHT_DECAY
        groups = super().trainable_groups()
        stage_scalars = [*adapt.nga.parameters(), *adapt.fusion.parameters()]
        if stage_scalars:
            groups.append(ParameterGroup("stage weights", stage_scalars, node.NGA_LR_MULT, 0.0))
        if adapt.readout is not None:
            groups.append(ParameterGroup("readout norms", adapt.readout.norms(), 1.0, decay if node.LN_DECAY else 0.0))
            groups.append(ParameterGroup("readout projections", [adapt.readout.weight], 1.0, decay))
        return groups

    def student_losses(self, prediction: Prediction, target: TrainingTarget) -> dict[str, Tensor]:
        """See `LaFTer`; adds consistency between stages and deep supervision, each only if its weight is not 0."""
        node, losses = self.settings, super().student_losses(prediction, target)
        if node.CONS_WEIGHT:
            consistency = consistency_loss(prediction.stage_logits, pairs=node.CONS_PAIRS, detach=node.CONS_DETACH)
            losses["consistency"] = node.CONS_WEIGHT * consistency
        if node.DEEP_SUPERVISION:
            losses["deep"] = node.DEEP_SUPERVISION * self.main_loss(prediction.stage_logits, target)
        return losses

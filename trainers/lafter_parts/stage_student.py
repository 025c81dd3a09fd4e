"""The student that reads several depths of the tower: what the trainers with transformer stages share.

The CLS tokens of K blocks become S stage features, each judged by the text-trained classifier; the stage logits are fused.
The order is part of the contract, because a LayerNorm is not linear:

- readout `shared`: every block's CLS goes through CLIP's own post-LN and projection, *then* a stage's blocks are aggregated;
- readout `stage`: a stage's raw CLS tokens are aggregated, *then* go through the stage's LayerNorm and projection, which start
  as copies of CLIP's.

All stages are read, classified and fused as batched products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_ext.aggregation import NeighbourhoodGaussian, StageFusion
from clip_ext.stage_heads import StageClassifiers, StageReadout
from trainers.lafter_parts.students import LaFTerStudent, Prediction
from trainers.precision import full_precision


class StageStudent(LaFTerStudent):
    """LaFTer's student that reads K CLS tokens in S stages.

    Args:
        visual: See `LaFTerStudent`.
        n_classes: C.
        stages: 1-based block numbers of each stage, shallow to deep.
        readout: `shared` or `stage`, as above.
        stage_classifier: `shared`, or `copy`: one trainable copy of the text classifier per stage.
        aggregation: Further arguments of `NeighbourhoodGaussian`.
        fusion: Arguments of `StageFusion`.
        student: Further arguments of `LaFTerStudent`.
    """

    prompt_mode = "replace"  # of the driver; for prompts that enter at block 1 only, every mode is the same

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
        features, tokens = self._encode(images, self.prompts)
        stage_features = self._read_stages(tokens)
        fusion = self.adapt.fusion
        with full_precision(images.device):
            judged = self.normalised(stage_features)
            stage_logits = self.scaled(self.adapt.classifier(judged))  # (S, B, C)
            of_distribution = self.distribution_logits(judged)
            fused = None if of_distribution is None else fusion(of_distribution)
            return Prediction(fusion(stage_logits), stage_logits, features.float(), fused)

    def _encode(self, images: Tensor, prompts: Mapping[int, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return final features (B, E) and the CLS tokens of the K stage blocks, (K, B, D)."""
        blocks = self.adapt.nga.blocks
        output = self.driver(
            images,
            prompts=prompts,
            prompt_mode=self.prompt_mode,
            taps=blocks,
            checkpoint=self._recomputes(),
            cls_only_last=True,
        )
        return output.features, torch.stack([output.taps[block] for block in blocks])

    def _project(self, tokens: Tensor) -> Tensor:
        """Map CLS tokens (..., D) to (..., E) as CLIP does."""
        return self.driver.tower.project(self.driver.tower.post(tokens))

    def _read_stages(self, tokens: Tensor) -> Tensor:
        """Turn the CLS tokens of K blocks, (K, B, D), into stage features, (S, B, E), fp32."""
        readout = self.adapt.readout
        blocks = self._project(tokens) if readout is None else tokens
        with full_precision(tokens.device):
            stage_tokens = self.adapt.nga(blocks.float())
            return stage_tokens if readout is None else readout(stage_tokens)

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

"""HybridCascadeLaFTer: LaFTer on the features of three transformer stages instead of the last block alone.

Fifty shallow prompts as in LaFTer (https://arxiv.org/abs/2305.18287); the CLS tokens of blocks 5-12 go through CLIP's own
post-LN and projection, are aggregated inside each stage by a neighbourhood Gaussian (Cascade-CLIP,
https://arxiv.org/abs/2406.00670), judged by LaFTer's one text-trained classifier, and fused. Unlike the segmentation paper, it
reads CLS instead of patches and has no decoder.
"""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from clip_ext.stages import to_legacy
from trainers.lafter import LaFTer
from trainers.lafter_parts.stage_student import StageStudent
from trainers.lafter_parts.stage_training import StageTraining


class HybridCascadeStudent(StageStudent):
    """Stage student with shallow prompts; its stages may skip early blocks."""

    def forward_with_intermediates(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return final features (B, E) and the K intermediate features, each (B, E), through CLIP's own projection."""
        features, tokens = self._encode(images, self.prompts)
        return features, list(self._project(tokens))

    @property
    def extraction_indices(self) -> list[int]:
        """Blocks that are read, counted from 0 (compatibility; everything else counts from 1)."""
        return to_legacy(self.stages)[1]

    @property
    def stage_boundaries(self) -> list[list[int]]:
        """Stages as positions in `extraction_indices` (compatibility)."""
        return to_legacy(self.stages)[0]


@TRAINER_REGISTRY.register()
class HybridCascadeLaFTer(StageTraining, LaFTer):
    """LaFTer with stage aggregation, stage fusion and consistency between stages."""

    stage_family = "hybrid"

    def build_student(self) -> HybridCascadeStudent:
        """See `LaFTer`."""
        return HybridCascadeStudent(self.clip.model.visual, self.num_classes, **self.student_options())

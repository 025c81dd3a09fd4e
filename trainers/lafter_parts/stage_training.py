"""How a student with transformer stages is set up and trained, whichever of the two trainers has it.

`StageTraining` is mixed into a child of `LaFTer`: it reads the stage keys, declares what the stages train, and adds the losses
between and on single stages.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from clip_ext.losses import consistency_loss
from clip_ext.stages import Stages, list_schemes, resolve_stages
from trainers.base import ParameterGroup
from trainers.lafter_parts.students import Prediction
from trainers.lafter_parts.targets import TrainingTarget


class StageTraining:
    """Mixed in before `LaFTer`; a trainer names its family of stage plans and builds its `StageStudent`."""

    stage_family: str  # of clip_ext/stages.py

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        node, name = cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}"
        problems = super().config_problems(cfg) + _list_problems(self.stage_family, node.STAGES, f"{name}.STAGES")
        schemes = list_schemes(self.stage_family)
        if node.STAGE_SCHEME not in schemes:
            problems.append(f"{name}.STAGE_SCHEME is {node.STAGE_SCHEME!r}; expected one of {', '.join(schemes)}")
        if node.NGA_SIGMA_INIT <= node.NGA_SIGMA_MIN:
            problems.append(
                f"{name}.NGA_SIGMA_INIT is {node.NGA_SIGMA_INIT}; expected more than NGA_SIGMA_MIN {node.NGA_SIGMA_MIN}"
            )
        if node.FUSION == "last" and not (node.CONS_WEIGHT or node.DEEP_SUPERVISION or len(node.STAGES) == 1):
            problems.append(
                f"{name}.FUSION is 'last' with CONS_WEIGHT 0 and DEEP_SUPERVISION 0, so that shallower stages never reach the "
                "loss; expected one of the two above 0, or STAGES with one list"
            )
        return problems

    def resolve_stages(self) -> Stages:
        """Return the blocks of each stage for the depth of the loaded tower.

        Raises:
            ValueError: If they do not fit the tower (names key and block).
        """
        node, depth = self.settings, self.clip.info.depth
        try:
            return resolve_stages(self.stage_family, depth, scheme=node.STAGE_SCHEME, stages=node.STAGES)
        except ValueError as error:
            key = "STAGES" if node.STAGES else "STAGE_SCHEME"
            raise ValueError(f"TRAINER.{self.node_name()}.{key} on {self.cfg.MODEL.BACKBONE.NAME}: {error}") from error

    def student_options(self) -> dict[str, Any]:
        """See `LaFTer`; adds what the stage keys say."""
        node = self.settings
        aggregation = {
            "mode": node.NGA_MODE,
            "offset": node.NGA_OFFSET,
            "sigma_init": node.NGA_SIGMA_INIT,
            "sigma_min": node.NGA_SIGMA_MIN,
        }
        return super().student_options() | {
            "stages": self.resolve_stages(),
            "readout": node.READOUT,
            "stage_classifier": node.STAGE_CLASSIFIER,
            "aggregation": aggregation,
            "fusion": {"mode": node.FUSION, "init": node.FUSION_INIT},
        }

    def trainable_groups(self) -> list[ParameterGroup]:
        """See `LaFTer`; adds the weights inside and between stages, and the stage readouts."""
        node, adapt, decay = self.settings, self.student.adapt, self.cfg.OPTIM.WEIGHT_DECAY
        groups = super().trainable_groups()
        stage_scalars = [*adapt.nga.parameters(), *adapt.fusion.parameters()]
        if stage_scalars:
            groups.append(ParameterGroup("stage weights", stage_scalars, node.NGA_LR_MULT, 0.0))
        if adapt.readout is not None:
            groups.append(ParameterGroup("readout norms", adapt.readout.scales(), 1.0, decay if node.LN_DECAY else 0.0))
            groups.append(ParameterGroup("readout norm biases", adapt.readout.shifts(), 1.0, 0.0))
            groups.append(ParameterGroup("readout projections", adapt.readout.projections(), 1.0, decay))
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


def _list_problems(family: str, stages: list, key: str) -> list[str]:
    """Return what is wrong with an explicit list on any tower; its fit to the depth shows once the tower is loaded."""
    if not stages:
        return []
    lists = all(isinstance(stage, (list, tuple)) for stage in stages)
    blocks = [block for stage in stages for block in stage] if lists else []
    if not lists or not all(type(block) is int for block in blocks):
        return [f"{key} is {stages}; expected lists of block numbers, e.g. [[1, 2, 3], [4, 5, 6]]"]
    try:
        resolve_stages(family, max(blocks, default=1), stages=stages)
    except ValueError as error:
        return [f"{key}: {error}"]
    return []

"""MultiLayerLaFTer: LaFTer with prompts that enter at every stage of the transformer, and a readout per stage.

LaFTer (https://arxiv.org/abs/2305.18287) prompts the first block only. Here each stage brings prompts of its own, which replace
those of the stage before, add to them, or change with every block (VPT-deep, https://arxiv.org/abs/2203.12119). The blocks are
the CLIP's own, run once. A stage's CLS tokens are aggregated by a neighbourhood Gaussian (https://arxiv.org/abs/2406.00670) and
read through the stage's own LayerNorm and projection, which start as copies of CLIP's. Stages begin to train from the deepest
to the shallowest (`PROGRESSIVE`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from yacs.config import CfgNode

from trainers.base import ParameterGroup
from trainers.lafter import LaFTer
from trainers.lafter_parts.stage_student import StageStudent
from trainers.lafter_parts.stage_training import StageTraining
from trainers.lafter_parts.students import prompt_bound

logger = logging.getLogger(__name__)


def first_open_stage(epoch: int, *, n_stages: int, warmup_epochs: int, unfreeze_epochs: int) -> int | None:
    """Return the shallowest stage that trains in an epoch; it and all deeper ones do.

    Args:
        epoch: From 0.
        n_stages: m; stages count from 0, the deepest is m - 1.
        warmup_epochs: W: epochs of the deepest stage alone, >= 0.
        unfreeze_epochs: G: epochs after W in which one more stage opens each, >= 0.
    Returns:
        A stage in 0 .. m - 1, or None from epoch W + G on: everything trains, also what belongs to no stage.
    """
    if epoch < warmup_epochs:
        return n_stages - 1
    if epoch < warmup_epochs + unfreeze_epochs:
        return max(0, n_stages - 2 - (epoch - warmup_epochs))
    return None


class MultiLayerStudent(StageStudent):
    """Stage student whose prompts enter at every stage.

    `adapt.stage_prompts` holds one set of P tokens, (P, D), per block that prompts enter at, under the block's number: the
    first block of each stage (S * P * D numbers), or with `deep` every block (depth * P * D).

    Args:
        visual: See `LaFTerStudent`.
        n_classes: C.
        stages: 1-based block numbers of each stage; together all blocks.
        prompt_tokens: P; 0 = none.
        prompt_mode: `replace` (a stage's prompts replace those of the stage before), `accumulate` (they join them) or `deep`.
        readout: See `StageStudent`.
        student: Further arguments of `StageStudent`.
    """

    def __init__(
        self,
        visual: nn.Module,
        n_classes: int,
        *,
        stages: tuple[tuple[int, ...], ...],
        prompt_tokens: int = 16,
        prompt_mode: str = "replace",
        readout: str = "stage",
        **student: Any,
    ) -> None:
        super().__init__(visual, n_classes, stages=stages, prompt_tokens=0, readout=readout, **student)
        self.prompt_mode = prompt_mode
        bound, size = prompt_bound(self.info), (prompt_tokens, self.info.width)
        # Pairs: the container would sort the keys of a dict as words, 12 before 5.
        drawn = [(str(block), nn.Parameter(torch.empty(size).uniform_(-bound, bound))) for block in self.entries]
        self.adapt.stage_prompts = nn.ParameterDict(drawn if prompt_tokens else [])

    @property
    def entries(self) -> list[int]:
        """Blocks that prompts enter at, ascending."""
        deep = self.prompt_mode == "deep"
        return [block for stage in self.stages for block in (stage if deep else stage[:1])]

    @property
    def prompts(self) -> dict[int, Tensor] | None:
        """See `LaFTerStudent`."""
        return {int(block): prompt for block, prompt in self.adapt.stage_prompts.items()} or None

    def forward_multi_stage_prompts(self, images: Tensor, prompts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Encode images with prompts that are given.

        Args:
            images: Normalised, (B, 3, H, W).
            prompts: One set (P, D) per block of `entries`, shallow to deep; empty: no prompts. Not modified.
        Returns:
            Final features through CLIP's own readout, (B, E), and the features of each stage, S times (B, E).
        Raises:
            ValueError: If there is not one set per entry.
        """
        if prompts and len(prompts) != len(self.entries):
            expected = f"{len(self.entries)}, for blocks {self.entries}, or none"
            raise ValueError(f"got {len(prompts)} prompt sets; expected {expected}")
        features, tokens = self._encode(images, dict(zip(self.entries, prompts, strict=True)) if prompts else None)
        return features, list(self._read_stages(tokens))

    def stage_parameters(self, stage: int) -> list[nn.Parameter]:
        """Return what belongs to a stage, counted from 0: its prompts, its blocks' LayerNorms and its readout."""
        norms, prompts = self.driver.tower.norms(), self.adapt.stage_prompts
        blocks = self.stages[stage]
        found = [prompts[str(block)] for block in blocks if str(block) in prompts]
        for block in blocks:
            found += [*norms[f"blocks.{block}.ln_1"].parameters(), *norms[f"blocks.{block}.ln_2"].parameters()]
        return found + ([] if self.adapt.readout is None else self.adapt.readout.of_stage(stage))

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what every stage is judged by: the linear classifiers, and CLIP's post-LN if it reads the stages."""
        norms = [] if self.adapt.readout is not None else list(self.adapt.norms["ln_post"].parameters())
        return self.adapt.heads() + norms

    def open_from(self, stage: int | None) -> None:
        """Let the heads and the stages from `stage` (from 0) on train, and freeze the rest; None: everything trains.

        A frozen parameter has no gradient at all: one of zeros would still be decayed.
        """
        opened: Iterable[nn.Parameter] = self.adapt.parameters()
        if stage is not None:
            stages = range(stage, len(self.stages))
            opened = [*self.head_parameters(), *(p for number in stages for p in self.stage_parameters(number))]
        trains = {id(p) for p in opened}
        for p in self.adapt.parameters():
            p.requires_grad_(id(p) in trains)
            p.grad = None


@TRAINER_REGISTRY.register()
class MultiLayerLaFTer(StageTraining, LaFTer):
    """LaFTer with stage prompts, stage readouts and progressive unfreezing."""

    stage_family = "multilayer"

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        node, name = cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}"
        problems = super().config_problems(cfg)
        needed = node.PROGRESSIVE_WARMUP + node.PROGRESSIVE_EPOCHS
        if node.PROGRESSIVE and node.PHASE == "both" and needed >= cfg.OPTIM.MAX_EPOCH:
            problems.append(
                f"{name}.PROGRESSIVE needs PROGRESSIVE_WARMUP {node.PROGRESSIVE_WARMUP} + PROGRESSIVE_EPOCHS "
                f"{node.PROGRESSIVE_EPOCHS} epochs before all trains; expected fewer than OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}"
            )
        if node.PROMPT_MODE != "replace" and node.PROMPT_TOKENS == 0:
            problems.append(f"{name}.PROMPT_MODE is {node.PROMPT_MODE!r}, but PROMPT_TOKENS is 0; expected 1 or more")
        return problems

    def build_student(self) -> MultiLayerStudent:
        """See `LaFTer`."""
        options = self.student_options() | {"prompt_mode": self.settings.PROMPT_MODE}
        return MultiLayerStudent(self.clip.model.visual, self.num_classes, **options)

    def trainable_groups(self) -> list[ParameterGroup]:
        """See `LaFTer`; the prompts are those of the stages."""
        prompts = list(self.student.adapt.stage_prompts.values())
        decay = self.cfg.OPTIM.WEIGHT_DECAY if self.settings.LN_DECAY else 0.0
        groups = super().trainable_groups()
        return [ParameterGroup("prompts", prompts, 1.0, decay), *groups] if prompts else groups

    def before_epoch(self) -> None:
        """Open the stages of the epoch, then LaFTer's part; only the epoch's number counts, so a resumed run goes on alike."""
        if self.settings.PROGRESSIVE:
            self._open_stages()
        super().before_epoch()

    def _open_stages(self) -> None:
        node, n_stages = self.settings, len(self.student.stages)
        stage = first_open_stage(
            self.epoch,
            n_stages=n_stages,
            warmup_epochs=node.PROGRESSIVE_WARMUP,
            unfreeze_epochs=node.PROGRESSIVE_EPOCHS,
        )
        self.student.open_from(stage)
        self.check_gradients_again()
        opened = "everything" if stage is None else f"the classifier and, of {n_stages} stages, those from {stage + 1} on"
        logger.info("Epoch %d trains %s", self.epoch + 1, opened)

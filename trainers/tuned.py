"""`TunedTrainer`: how declared parameters train, in every trainer of ours.

Updates from one batch or several, precision, clipping, schedule, guards, and going on where a run stopped. Language systems
switch on what the LaFTer family does without: losses weighted by tokens, guards over many updates, resuming inside an epoch.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from dassl.data.datasets import Datum
from dassl.optim import build_lr_scheduler
from torch import Tensor, nn
from yacs.config import CfgNode

from trainers import precision
from trainers.accumulation import WeightedLosses
from trainers.config import problems_with_choices
from trainers.epoch_order import SeededOrderLoader
from trainers.mid_epoch import MidEpoch
from trainers.parameter_groups import ParameterGroup, build_group_optimizer, check_cover, log_groups
from trainers.schedules import build_schedule, resolve_schedule, warmup_epochs_of
from trainers.split_checks import find_split_problems, tests_on_validation
from trainers.stepping import SteppingTrainer

logger = logging.getLogger(__name__)

__all__ = ["TunedTrainer", "is_labelled"]


class TunedTrainer(SteppingTrainer):
    """Base of all trainers: declared groups -> Dassl optimizer and scheduler, precision, accumulation, clipping, guards.

    Attributes:
        needs_checkpoint: Whether `--eval-only` without `--model-dir` is an error.
        registered_name: Name of the trainable module in Dassl, and of its folder `OUT/<name>/`.
        resumes_mid_epoch: Samples come in an order, and with random choices, that only seed, epoch and index determine, and
            `latest.pth.tar` is written `SAVE_LATEST_PER_EPOCH` times per epoch. The config node needs that key.
    """

    needs_checkpoint = True
    registered_name = "adapt"
    resumes_mid_epoch = False
    mid_epoch: MidEpoch | None = None

    @property
    def settings(self) -> CfgNode:
        """This trainer's own config node."""
        return self.cfg.TRAINER[self.node_name()]

    @classmethod
    def node_name(cls) -> str:
        """Name of the config node: the class name in upper case, Dassl's rule."""
        return cls.__name__.upper()

    # Configuration

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: One for all problems found.
        """
        problems = self.config_problems(cfg)
        if problems:
            raise ValueError("\n".join([f"{type(self).__name__}: {len(problems)} problem(s) in the config", *problems]))

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """Return one message per problem; children add theirs."""
        node, name = cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}"
        problems = problems_with_choices(node, name)
        problems += precision.problems_with_precision(node.PREC, f"{name}.PREC", use_cuda=cfg.USE_CUDA)
        for key, expected in (("K_TRANSFORMS", 1), ("RETURN_IMG0", False)):
            if cfg.DATALOADER[key] != expected:
                problems.append(
                    f"DATALOADER.{key} is {cfg.DATALOADER[key]}; expected {expected}: views are the trainer's (AUGMENT)"
                )
        return problems

    # What trains

    def register_trainables(self, adapt: nn.Module, groups: Sequence[ParameterGroup]) -> None:
        """Build optimizer and scheduler from the declared groups and register the trainable module with Dassl.

        Args:
            adapt: Holds exactly the trainable parameters; they become fp32 leaves that require gradients.
            groups: Together they cover `adapt`.
        Raises:
            ValueError: If the groups and `adapt` do not hold the same parameters.
        """
        check_cover(adapt, groups)
        adapt.requires_grad_(True)
        self.groups = list(groups)
        self.batch_idx, self.num_batches = 0, len(self.train_loader_x)
        self.optim = build_group_optimizer(adapt, groups, self.cfg.OPTIM)
        self.sched = self.build_scheduler()
        self.register_model(self.registered_name, adapt, self.optim, self.sched)
        log_groups(groups)
        self.prec = precision.resolve_precision(self.settings.PREC, self.device)
        self.prepare_steps(adapt, scaled=self.prec in ("amp", "fp16"))
        if self.resumes_mid_epoch:
            self.mid_epoch = MidEpoch(self, saves_per_epoch=self.settings.SAVE_LATEST_PER_EPOCH)
            self.train_loader_x = self.order_batches(self.train_loader_x)

    def order_batches(self, loader: Any) -> Any:
        """Return the training loader whose order only seed, epoch and index determine; it starts where the run is."""
        return SeededOrderLoader(loader, self.mid_epoch.position)

    def build_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule of `self.optim`; it moves as `schedule_per_update` says."""
        node, max_epoch = self.settings, self.cfg.OPTIM.MAX_EPOCH
        name = resolve_schedule(node.SCHEDULER, f"TRAINER.{self.node_name()}.SCHEDULER")
        if name == "dassl":
            return build_lr_scheduler(self.optim, self.cfg.OPTIM)
        steps = 1 if node.SCHEDULER_STEP == "epoch" else -(-self.num_batches // node.GRAD_ACCUM)
        warmup = warmup_epochs_of(node, max_epoch)
        return build_schedule(self.optim, name, warmup_epochs=warmup, max_epochs=max_epoch, steps_per_epoch=steps)

    def autocast(self) -> Any:
        """Return the context in which the towers run."""
        return precision.autocast(self.device, precision.autocast_dtype(self.prec))

    # One batch

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor] | WeightedLosses:
        """Return the named losses of a parsed batch; their sum is minimised.

        A dict holds means over the batch, and every batch of an accumulation window counts the same. `WeightedLosses` holds
        sums, and every unit (token, sample) of the window counts the same.
        """

    def forward_backward(self, batch: dict | None) -> dict[str, float] | None:
        """Run one step of Dassl's loop; returns what its meters show: losses per batch, or per unit if they are weighted.

        None, for a batch that was done before the run was resumed, is passed over.
        """
        if batch is None:
            return None
        if self.mid_epoch is not None:
            self.mid_epoch.before_batch()
        losses = self.take_losses(self.compute_losses(self.parse_batch_train(batch)))
        total = torch.stack(list(losses.values())).sum()
        self.guard_loss(total, losses, batch)
        self.model_backward_and_update(total)
        last = self.batch_idx + 1 == self.num_batches
        if last and not self.schedule_per_update:
            self.update_lr()
        if self.lazy_guard and (last or self.prints_now()):
            self.check_losses()
        if self.mid_epoch is not None and self.mid_epoch.is_due():
            self.check_losses()
            self.mid_epoch.save()
        return self.summarise(total, losses)

    # State

    def extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside weights, optimizer and scheduler; saved by Dassl's checkpoint."""
        state = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        if self.mid_epoch is not None:
            state |= {"mid_epoch": self.mid_epoch.state(), "guards": self.guard_state()}
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        if self.mid_epoch is not None:
            self.mid_epoch.load_state(state["mid_epoch"])
            self.load_guard_state(state["guards"])

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the latest state below `directory`, inside an epoch if there is one; return the finished epochs."""
        if self.mid_epoch is not None:
            self.mid_epoch.tidy()
        finished = super().resume_model_if_exist(directory)
        if self.mid_epoch is not None:
            self.mid_epoch.resumed()
        return finished

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        """Write Dassl's checkpoint; it takes the place of the state inside the epoch."""
        if self.lazy_guard:
            self.check_losses()
        super().save_model(epoch, directory, *args, **kwargs)
        if self.mid_epoch is not None:
            self.mid_epoch.forget(directory)

    # Data and test

    def before_train(self) -> None:
        """Check the data, then Dassl's part: resume and open the writer."""
        self.check_data()
        super().before_train()

    def check_data(self) -> None:
        """Refuse data that cannot be trained on.

        Raises:
            ValueError: One for all problems found.
        """
        problems = self.data_problems()
        if problems:
            raise ValueError("\n".join([f"{type(self).__name__}: {len(problems)} problem(s) with the data", *problems]))

    def data_problems(self) -> list[str]:
        """Return one message per reason why this data set cannot be trained on; children add theirs."""
        best_val = self.cfg.TEST.FINAL_MODEL == "best_val"
        return find_split_problems(self.dm.dataset, self.has_target, needs_val=best_val)

    def has_target(self, item: Datum) -> bool:
        """Whether an item says what is right: a label here, -1 stands for none. Answers, where questions are asked."""
        return item.label >= 0

    def can_be_tested(self, items: Sequence[Datum]) -> bool:
        """Whether any item of a split says what is right."""
        return any(self.has_target(item) for item in items)

    def test(self, split: str | None = None) -> float | None:
        """Evaluate as Dassl does; a split of which no item has a target is skipped, and None returned."""
        split = split or self.cfg.TEST.SPLIT
        items = self.dm.dataset.val if split == "val" and self.val_loader is not None else self.dm.dataset.test
        if self.can_be_tested(items):
            result = super().test(split)
            if split != "val" and tests_on_validation(self.dm.dataset):
                logger.warning("These are VALIDATION figures: the data set has no test part")
            return result
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(item.impath)) for item in items])
        logger.info(
            "Test skipped: no image of the *%s* split has a label. Predictions come from\n"
            "python predict.py --model-dir %s --input %s --output predictions.csv",
            split, self.cfg.OUTPUT_DIR, folder,
        )  # fmt: skip
        return None


def is_labelled(items: Sequence[Datum]) -> bool:
    """Whether any item has a label; -1 stands for none."""
    return any(item.label >= 0 for item in items)

"""`TunedTrainer`: how declared parameters train, in every trainer of ours.

Updates from one batch or several, precision, clipping, schedule, guards, and going on where a run stopped. Language systems
switch on what the LaFTer family does without: losses weighted by tokens, guards over many updates, resuming inside an epoch.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from dassl.data.datasets import Datum
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler
from torch import Tensor, nn
from yacs.config import CfgNode

from trainers import precision
from trainers.accumulation import WeightedLosses, WeightWindow
from trainers.config import problems_with_choices
from trainers.epoch_order import SeededOrderLoader
from trainers.guards import GradientGuard, LossGuard
from trainers.mid_epoch import MidEpoch
from trainers.parameter_groups import ParameterGroup, build_group_optimizer, check_cover, log_groups
from trainers.schedules import build_schedule, resolve_schedule, warmup_epochs_of

logger = logging.getLogger(__name__)

__all__ = ["TunedTrainer", "is_labelled"]


class TunedTrainer(TrainerX):
    """Base of all trainers: declared groups -> Dassl optimizer and scheduler, precision, accumulation, clipping, guards.

    Attributes:
        needs_checkpoint: Whether `--eval-only` without `--model-dir` is an error.
        registered_name: Name of the trainable module in Dassl, and of its folder `OUT/<name>/`.
        resumes_mid_epoch: Samples come in an order, and with random choices, that only seed, epoch and index determine, and
            `latest.pth.tar` is written `SAVE_LATEST_PER_EPOCH` times per epoch. The config node needs that key.
        gradient_window: First updates; a trainable parameter whose gradient is None in all of them stops the run.
        zero_window: First updates; a gradient of 0 in all of them stops the run, and at any time a loss of exactly 0 in that
            many updates in a row. 0 = neither.
        lazy_guard: The loss is looked at only at print steps, before saves and at epoch ends, so that no batch waits for
            the GPU; the meters get it at print steps only.
    """

    needs_checkpoint = True
    registered_name = "adapt"
    resumes_mid_epoch = False
    gradient_window = 1
    zero_window = 0
    lazy_guard = False

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
        self.adapt, self.groups = adapt, list(groups)
        self.batch_idx, self.num_batches = 0, len(self.train_loader_x)
        self.optim = build_group_optimizer(adapt, groups, self.cfg.OPTIM)
        self.sched = self._build_scheduler()
        self.register_model(self.registered_name, adapt, self.optim, self.sched)
        log_groups(groups)
        self.prec = precision.resolve_precision(self.settings.PREC, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.prec in ("amp", "fp16") else None
        self._weight: float | None = None  # of the batch at work; None: its losses are means
        self._weights = WeightWindow()
        self._loss_guard = LossGuard(zero_window=self.zero_window)
        self._gradient_guard = GradientGuard(
            adapt, window=self.gradient_window, zero_window=self.zero_window, exempt=self.exempt_from_guard()
        )
        if self.resumes_mid_epoch:
            self.mid_epoch = MidEpoch(self, saves_per_epoch=self.settings.SAVE_LATEST_PER_EPOCH)
            self.train_loader_x = SeededOrderLoader(self.train_loader_x, self.mid_epoch.position)

    def _build_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        node, max_epoch = self.settings, self.cfg.OPTIM.MAX_EPOCH
        name = resolve_schedule(node.SCHEDULER, f"TRAINER.{self.node_name()}.SCHEDULER")
        if name == "dassl":
            return build_lr_scheduler(self.optim, self.cfg.OPTIM)
        steps = 1 if node.SCHEDULER_STEP == "epoch" else -(-self.num_batches // node.GRAD_ACCUM)
        warmup = warmup_epochs_of(node, max_epoch)
        return build_schedule(self.optim, name, warmup_epochs=warmup, max_epochs=max_epoch, steps_per_epoch=steps)

    def exempt_from_guard(self) -> Collection[str]:
        """Return the names, in the registered module, of parameters that may stay without gradient; none here."""
        return ()

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
        losses = self._unpack(self.compute_losses(self.parse_batch_train(batch)))
        total = torch.stack(list(losses.values())).sum()
        self._guard_loss(total, losses, batch)
        self.model_backward_and_update(total)
        last = self.batch_idx + 1 == self.num_batches
        if self.settings.SCHEDULER_STEP == "epoch" and last:
            self.update_lr()
        if self.lazy_guard and (last or self._prints_now()):
            self._check_losses()
        if self.mid_epoch is not None and self.mid_epoch.is_due():
            self._check_losses()
            self.mid_epoch.save()
        return self._summarise(total, losses)

    def _unpack(self, found: dict[str, Tensor] | WeightedLosses) -> Mapping[str, Tensor]:
        """Return the losses by name; note the weight of the batch."""
        if not isinstance(found, WeightedLosses):
            self._weight = None
            return found
        if self.batch_idx == self.accumulation_window()[0]:
            self._weights = WeightWindow()
        self._weight = self._weights.add(found.weight)
        return found.losses

    def _summarise(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float] | None:
        if self._weight == 0 or (self.lazy_guard and not self._prints_now()):
            return None
        unit = 1.0 if self._weight is None else self._weight
        parts = {name: value.item() / unit for name, value in losses.items()} if len(losses) > 1 else {}
        return {"loss": total.item() / unit, **parts}

    def _prints_now(self) -> bool:
        """Whether Dassl's loop prints a line after this batch."""
        frequency = self.cfg.TRAIN.PRINT_FREQ
        return (self.batch_idx + 1) % frequency == 0 or self.num_batches < frequency

    # Guards

    def _guard_loss(self, total: Tensor, losses: Mapping[str, Tensor], batch: dict) -> None:
        self._loss_guard.add(total)
        if self.lazy_guard or torch.isfinite(total):
            return
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        paths = "\n".join(str(path) for path in batch.get("impath", []))
        raise FloatingPointError(f"Loss is infinite or NaN! Parts: {parts}. Images of the batch:\n{paths}")

    def _check_losses(self) -> None:
        """Raise what the guard of the losses has collected."""
        problem = self._loss_guard.problem()
        if problem is not None:
            place = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise type(problem)(f"{type(self).__name__}, {place}: {problem}")

    def check_gradients_again(self) -> None:
        """Watch the coming updates as if they were the first; for trainers that let further parameters train."""
        self._gradient_guard.restart()

    # One update

    def accumulation_window(self) -> tuple[int, int]:
        """Return (first batch, number of batches) of the accumulation window at work; an epoch's last may be short."""
        size = self.settings.GRAD_ACCUM
        first = self.batch_idx - self.batch_idx % size
        return first, min(size, self.num_batches - first)

    def model_zero_grad(self, names: Sequence[str] | None = None) -> None:
        """Clear gradients at the start of an accumulation window."""
        if self.batch_idx == self.accumulation_window()[0]:
            super().model_zero_grad(names)

    def model_backward(self, loss: Tensor) -> None:
        """Backpropagate the batch's share of the window's mean, scaled for fp16; a batch of weight 0 has none."""
        if not self.lazy_guard:
            self.detect_anomaly(loss)
        if self._weight == 0:
            return
        loss = loss / (self.accumulation_window()[1] if self._weight is None else self._weights.constant)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def model_update(self, names: Sequence[str] | None = None) -> None:
        """Step the optimizer at the end of an accumulation window, after clipping.

        A window in which nothing counted (every weight 0) changes no parameter; the schedule moves on.
        """
        first, size = self.accumulation_window()
        if self.batch_idx + 1 < first + size:
            return
        self._loss_guard.end_update()
        if self.zero_window and not self.lazy_guard:
            self._check_losses()
        if self._weight is None or self._weights.total:
            self._step(names)
        else:
            logger.warning("Epoch %d, batch %d: no update, nothing in it counts", self.epoch + 1, self.batch_idx + 1)
        if self.settings.SCHEDULER_STEP == "update":
            self.update_lr()

    def _step(self, names: Sequence[str] | None) -> None:
        try:
            self._gradient_guard.observe()
        except RuntimeError:
            self._check_losses()  # a loss of 0 is the better reason for gradients of 0
            raise
        if self._weight is not None:
            self._weights.average(self.adapt.parameters())
        if self.scaler is not None:
            self.scaler.unscale_(self.optim)
        if self.settings.MAX_GRAD_NORM:
            nn.utils.clip_grad_norm_(self.adapt.parameters(), self.settings.MAX_GRAD_NORM)
        if self.scaler is None:
            super().model_update(names)
        else:
            self.scaler.step(self.optim)
            self.scaler.update()
        self.after_update()

    def after_update(self) -> None:
        """Do what follows every optimizer step; nothing here."""

    # State

    def extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside weights, optimizer and scheduler; saved by Dassl's checkpoint."""
        state = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        if self.mid_epoch is not None:
            guards = {"gradients": self._gradient_guard.state(), "losses": self._loss_guard.state()}
            state |= {"mid_epoch": self.mid_epoch.state(), "guards": guards}
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        if self.mid_epoch is not None:
            self.mid_epoch.load_state(state["mid_epoch"])
            self._gradient_guard.load_state(state["guards"]["gradients"])
            self._loss_guard.load_state(state["guards"]["losses"])

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
            self._check_losses()
        super().save_model(epoch, directory, *args, **kwargs)
        if self.mid_epoch is not None:
            self.mid_epoch.forget(directory)

    # Data and test

    def before_train(self) -> None:
        """Check the data, then Dassl's part: resume and open the writer.

        Raises:
            ValueError: One for all problems found.
        """
        problems = self.data_problems()
        if problems:
            raise ValueError("\n".join([f"{type(self).__name__}: {len(problems)} problem(s) with the data", *problems]))
        super().before_train()

    def data_problems(self) -> list[str]:
        """Return one message per reason why this data set cannot be trained on; children add theirs."""
        data, problems = self.dm.dataset, []
        tested = {item.impath for item in data.test}
        for name, items in (("train", data.train_x), ("val", data.val or [])):
            shared = dict.fromkeys(item.impath for item in items if item.impath in tested and self.has_target(item))
            if shared:
                problems.append(f"{len(shared)} labelled image(s) are in both {name} and test, e.g. {next(iter(shared))}")
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.can_be_tested(data.val or []):
            problems.append("TEST.FINAL_MODEL is 'best_val', but the data set has no val split with labels; expected last_step")
        return problems

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
            return super().test(split)
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

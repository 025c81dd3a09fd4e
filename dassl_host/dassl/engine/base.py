"""What every trainer has: named models with optimizer and schedule, checkpoints, scalars and the order of the hooks."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dassl.utils import save_checkpoint, tolist_if_not
from dassl_host.trainer_state import checkpoint_state, load_models, restore_rng, resume_trainer

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Names = str | Sequence[str] | None


class TrainerBase:
    """Base class of iterative trainers.

    Methods that take `names` act on those registered models, on all of them by default; a model without an optimizer
    or a schedule is skipped where that is needed.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, LRScheduler | None] = OrderedDict()
        self._writer = None

    # Registered models

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Hand a model to the loop: its mode, updates, schedule and checkpoints are then taken care of.

        Args:
            name: Also the name of its folder of checkpoints.
            model: The module to save; it may be a part of the one that is called.
            optim: Its optimizer; None for a model that is saved but not trained here.
            sched: Schedule of that optimizer.
        Raises:
            AttributeError: If called before `TrainerBase.__init__`.
            AssertionError: If the name is taken.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("register_model() was called before super().__init__()")
        assert name not in self._models, f"A model named {name!r} is registered already"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return `names` as a checked list, or all registered names in order.

        Raises:
            AssertionError: If a name is not registered.
        """
        registered = list(self._models)
        if names is None:
            return registered
        names = list(names) if isinstance(names, tuple) else tolist_if_not(names)
        for name in names:
            assert name in registered, f"No model named {name!r}; registered: {', '.join(registered) or 'none'}"
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to "train", or to "test" (also "eval"); another mode raises KeyError."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode is {mode!r}; expected train, test or eval")
        for name in self.get_model_names(names):
            if mode == "train":
                self._models[name].train()
            else:
                self._models[name].eval()

    # Optimization

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients that the optimizers see."""
        for optim in self._active_optimizers(names):
            optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Backpropagate a finite loss."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Step the optimizers."""
        for optim in self._active_optimizers(names):
            optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Clear gradients, backpropagate `loss` and step the optimizers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules. The loop never does this: a trainer calls it after the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of the first model that has an optimizer.

        Raises:
            RuntimeError: If none has one.
        """
        for optim in self._active_optimizers(names):
            return optim.param_groups[0]["lr"]
        raise RuntimeError(
            f"{type(self).__name__} has no optimizer to train with; give one to register_model(name, model, optim, sched)"
        )

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise FloatingPointError unless every element of `loss` is finite."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def _active_optimizers(self, names: Names) -> list[Optimizer]:
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return [optim for optim in optims if optim is not None]

    # Checkpoints

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write a checkpoint of every registered model under ``directory/<name>``.

        Args:
            epoch: The epoch just finished, from 0.
            directory: Run folder.
            is_best: Also write a copy as model-best.pth.tar.
            val_result: Validation result, percent.
            model_name: File name; "" stands for model.pth.tar-<epoch + 1>.
        """
        for name in self.get_model_names():
            save_checkpoint(
                checkpoint_state(self, name, epoch, val_result),
                os.path.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the latest checkpoints under `directory` and return the number of finished epochs.

        The random generators follow in `train`, once every `before_train` has run.
        """
        return resume_trainer(self, directory)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load weights for evaluation: model-best.pth.tar, or those after `epoch` epochs; "" loads nothing.

        Raises:
            FileNotFoundError: If there is no such file (lists those present).
        """
        load_models(self, directory, epoch)

    # Scalars for tensorboard

    def init_writer(self, log_dir: str) -> None:
        """Open the tensorboard writer, once."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        """Close the tensorboard writer if it is open."""
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write one scalar; without a writer, as in pure evaluation, nothing happens."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop and its hooks

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from `start_epoch` (from 0) up to, not including, `max_epoch`.

        `before_train` may move `start_epoch`; a resumed run's random generators are restored after it.
        """
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        restore_rng(self)
        for self.epoch in range(self.start_epoch, self.max_epoch):
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self) -> Any:
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any] | None:
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        raise NotImplementedError

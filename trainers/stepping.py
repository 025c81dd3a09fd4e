"""From losses to optimizer steps: accumulation, loss scaling, clipping, and the guards that watch both."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from dassl.engine import TrainerX
from torch import Tensor, nn

from trainers.accumulation import WeightedLosses, WeightWindow
from trainers.guards import GradientGuard, LossGuard

logger = logging.getLogger(__name__)


class SteppingTrainer(TrainerX):
    """How a batch's loss becomes part of an update: Dassl's three parts, over windows of `GRAD_ACCUM` batches.

    Attributes:
        gradient_window: First updates; a trainable parameter whose gradient is None in all of them stops the run.
        zero_window: First updates; a gradient of 0 in all of them stops the run, and at any time a loss of exactly 0 in that
            many updates in a row. 0 = neither.
        constant_window: Losses in a row, of those that the meters get, that may not all be equal; 0 = not checked.
        waits_for_scaler: An update that the loss scaler skips leaves a schedule that moves per update where it is. To know
            that, each update waits for the GPU.
        lazy_guard: The loss is looked at only at print steps, before saves and at epoch ends, so that no batch waits for
            the GPU; the meters get it at print steps only.
    """

    gradient_window = 1
    zero_window = 0
    constant_window = 0
    lazy_guard = False
    waits_for_scaler = False

    def prepare_steps(self, adapt: nn.Module, *, scaled: bool) -> None:
        """Set up everything that updates of `adapt` need.

        Args:
            adapt: Holds what trains.
            scaled: Whether losses are scaled for fp16 gradients.
        """
        self.adapt = adapt
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None
        self._weight: float | None = None  # of the batch at work; None: its losses are means
        self._weights = WeightWindow()
        self.skipped_updates = 0  # by the loss scaler, since this process started; counted with `waits_for_scaler`
        self._loss_guard = LossGuard(zero_window=self.zero_window, constant_window=self.constant_window)
        self._gradient_guard = GradientGuard(
            adapt, window=self.gradient_window, zero_window=self.zero_window, exempt=self.exempt_from_guard()
        )

    def exempt_from_guard(self) -> Collection[str]:
        """Return the names, in the registered module, of parameters that may stay without gradient; none here."""
        return ()

    def take_losses(self, found: dict[str, Tensor] | WeightedLosses) -> Mapping[str, Tensor]:
        """Return the losses of the batch at work by name, and note their weight."""
        if not isinstance(found, WeightedLosses):
            self._weight = None
            return found
        if self.batch_idx == self.accumulation_window()[0]:
            self._weights = WeightWindow()
        self._weight = self._weights.add(found.weight)
        return found.losses

    def summarise(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Return what the meters show of a batch, per unit if it is weighted; None if it has no weight, or is not looked at."""
        if self._weight == 0 or (self.lazy_guard and not self.prints_now()):
            return None
        unit = 1.0 if self._weight is None else self._weight
        if self.constant_window:
            self._loss_guard.read(total.item() / unit)
            self.check_losses()
        parts = {name: value.item() / unit for name, value in losses.items()} if len(losses) > 1 else {}
        return {"loss": total.item() / unit, **parts}

    def prints_now(self) -> bool:
        """Whether Dassl's loop prints a line after this batch."""
        frequency = self.cfg.TRAIN.PRINT_FREQ
        return (self.batch_idx + 1) % frequency == 0 or self.num_batches < frequency

    # Guards

    def guard_loss(self, total: Tensor, losses: Mapping[str, Tensor], batch: dict) -> None:
        """Take note of a batch's loss, the sum of `losses`.

        Raises:
            FloatingPointError: If it is infinite or NaN (names the parts and the images); not with `lazy_guard`.
        """
        self._loss_guard.add(total)
        if self.lazy_guard or torch.isfinite(total):
            return
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        paths = "\n".join(str(path) for path in batch.get("impath", []))
        raise FloatingPointError(f"Loss is infinite or NaN! Parts: {parts}. Images of the batch:\n{paths}")

    def check_losses(self) -> None:
        """Raise what was noted about losses since: one that is not finite, or 0 for too long."""
        problem = self._loss_guard.problem()
        if problem is not None:
            place = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise type(problem)(f"{type(self).__name__}, {place}: {problem}")

    def check_gradients_again(self) -> None:
        """Watch the coming updates as if they were the first; for trainers that let further parameters train."""
        self._gradient_guard.restart()

    def guard_state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on counting."""
        return {"gradients": self._gradient_guard.state(), "losses": self._loss_guard.state()}

    def load_guard_state(self, state: dict[str, Any]) -> None:
        """Take back what `guard_state` returned."""
        self._gradient_guard.load_state(state["gradients"])
        self._loss_guard.load_state(state["losses"])

    # One update

    @property
    def schedule_per_update(self) -> bool:
        """Whether the schedule moves after every update, not after every epoch."""
        return self.settings.SCHEDULER_STEP == "update"

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
        moves = self.schedule_per_update
        first, size = self.accumulation_window()
        if self.batch_idx + 1 < first + size:
            return
        self._loss_guard.end_update()
        if self.zero_window and not self.lazy_guard:
            self.check_losses()
        if self._weight is None or self._weights.total:
            moves = self._step(names) and moves
        else:
            logger.warning("Epoch %d, batch %d: no update, nothing in it counts", self.epoch + 1, self.batch_idx + 1)
        if moves:
            self.update_lr()

    def _step(self, names: Sequence[str] | None) -> bool:
        """Step the optimizer; returns False if the loss scaler skipped the step and the schedule is to wait."""
        try:
            self._gradient_guard.observe()
        except RuntimeError:
            self.check_losses()  # a loss of 0 is the better reason for gradients of 0
            raise
        if self._weight is not None:
            self._weights.average(self.adapt.parameters())
        if self.scaler is not None:
            self.scaler.unscale_(self.optim)
        self.before_clipping()
        if self.settings.MAX_GRAD_NORM:
            nn.utils.clip_grad_norm_(self.adapt.parameters(), self.settings.MAX_GRAD_NORM)
        stepped = True
        if self.scaler is None:
            super().model_update(names)
        else:
            stepped = self._step_scaled()
        self.after_update()
        return stepped

    def _step_scaled(self) -> bool:
        before = self.scaler.get_scale() if self.waits_for_scaler else 0.0
        self.scaler.step(self.optim)
        self.scaler.update()
        skipped = self.scaler.get_scale() < before if self.waits_for_scaler else False
        self.skipped_updates += skipped
        return not skipped

    def before_clipping(self) -> None:
        """Look at the gradients of an update, before they are clipped; nothing here.

        They are those of the mean over the window, unscaled; fp16's may be infinite, and the step is then skipped.
        """

    def after_update(self) -> None:
        """Do what follows every optimizer step; nothing here."""

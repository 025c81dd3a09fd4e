"""What the loop reports: the batch line in the log, the scalars of each step and a progress bar for evaluation."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from dassl.utils import AverageMeter, MetricMeter

if TYPE_CHECKING:
    from dassl.engine.trainer import SimpleTrainer

T = TypeVar("T")


class EpochProgress:
    """Time the batches of one epoch and report them.

    Create it right before the first batch is fetched; per batch, call `data_ready` when the batch is there and `step`
    when it has been used.

    Args:
        trainer: The running trainer; its `epoch`, `batch_idx` and learning rate are read at each step.
        num_batches: Batches in this epoch.
    """

    def __init__(self, trainer: SimpleTrainer, num_batches: int) -> None:
        self.trainer = trainer
        self.num_batches = num_batches
        self.print_freq = trainer.cfg.TRAIN.PRINT_FREQ
        self.metrics = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self._start = time.perf_counter()

    def data_ready(self) -> None:
        """Note how long the batch took to load."""
        self.data_time.update(time.perf_counter() - self._start)

    def step(self, summary: dict[str, Any] | None) -> None:
        """Take the named losses of a batch, print its line if one is due and write its scalars."""
        self.batch_time.update(time.perf_counter() - self._start)
        self.metrics.update(summary)
        trainer = self.trainer
        done = trainer.batch_idx + 1
        if done % self.print_freq == 0 or self.num_batches < self.print_freq:
            print(self._line(done))
        step = trainer.epoch * self.num_batches + trainer.batch_idx
        for name, meter in self.metrics.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        self._start = time.perf_counter()

    def _line(self, done: int) -> str:
        trainer = self.trainer
        batches_left = self.num_batches - done + (trainer.max_epoch - trainer.epoch - 1) * self.num_batches
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * batches_left))
        parts = [
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}]",
            f"batch [{done}/{self.num_batches}]",
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})",
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f})",
            str(self.metrics),
            f"lr {trainer.get_current_lr():.4e}",
            f"eta {eta}",
        ]
        return " ".join(part for part in parts if part)


def progress_bar(iterable: Iterable[T]) -> Iterator[T]:
    """Iterate with a bar on stderr, if that is a terminal; the log stays free of it."""
    return iter(tqdm(iterable, file=sys.stderr, disable=None))

"""Learning-rate factors: one pure function of the epoch per schedule, always run by a `LambdaLR`.

A `LambdaLR` multiplies each group's own learning rate, so the ratios between groups persist, and its state is plain data.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from yacs.config import CfgNode

logger = logging.getLogger(__name__)

WARMUP_START = 0.1  # factor of epoch 0 in the warm-up schedules
SCHEDULES = ("constant", "warmup_constant", "warmup_cosine", "dassl")
OLDER_SPELLINGS = {
    "none": "constant",
    "coslr": "warmup_cosine",
    "multistep": "warmup_constant",
    "cosine": "warmup_constant",
}


def resolve_schedule(name: str, key: str) -> str:
    """Return the schedule that `name` stands for; an older spelling is replaced with a one-line notice.

    Args:
        name: Value from the config.
        key: Config key it came from, for messages.
    Raises:
        ValueError: If the name is unknown (lists all).
    """
    if name in OLDER_SPELLINGS:
        logger.info("%s %s is an older spelling of %s", key, name, OLDER_SPELLINGS[name])
        return OLDER_SPELLINGS[name]
    if name not in SCHEDULES:
        raise ValueError(f"{key} is {name!r}; expected one of {', '.join(SCHEDULES)} (older: {', '.join(OLDER_SPELLINGS)})")
    return name


def problems_with_schedule(node: CfgNode, name: str) -> list[str]:
    """Return one message per reason why `SCHEDULER` and `SCHEDULER_STEP` cannot be followed.

    Args:
        node: Of a trainer whose warm-up is a share of the run.
        name: Its dotted name for the messages.
    """
    if node.SCHEDULER not in (*SCHEDULES, *OLDER_SPELLINGS):
        return [f"{name}.SCHEDULER is {node.SCHEDULER!r}; expected one of {', '.join(SCHEDULES)}"]
    if node.SCHEDULER == "dassl" and node.SCHEDULER_STEP == "update":
        return [f"{name}.SCHEDULER_STEP is 'update', but {name}.SCHEDULER dassl counts epochs; expected epoch"]
    return []


def warmup_epochs_of(node: CfgNode, max_epochs: int) -> float:
    """Return the length of the warm-up that a trainer's node asks for, in epochs.

    Args:
        node: Has `WARMUP_EPOCHS`, or `WARMUP_RATIO`: a share, [0, 1), of all optimizer updates. If the schedule moves per
            epoch (`SCHEDULER_STEP epoch`), the share is rounded to whole epochs, fewer than all.
        max_epochs: Of the run.
    """
    if "WARMUP_RATIO" not in node:
        return node.WARMUP_EPOCHS
    length = node.WARMUP_RATIO * max_epochs
    return float(min(round(length), max_epochs - 1)) if node.SCHEDULER_STEP == "epoch" else length


def warmup_factor(epoch: float, *, warmup_epochs: float) -> float:
    """Return the linear ramp 0.1 + 0.9 e/W for e < W, then 1."""
    if epoch >= warmup_epochs:
        return 1.0
    return WARMUP_START + (1.0 - WARMUP_START) * epoch / warmup_epochs


def constant_factor(epoch: float) -> float:
    """Return 1 at any epoch."""
    return 1.0


def warmup_cosine_factor(epoch: float, *, warmup_epochs: float, max_epochs: float) -> float:
    """Return the warm-up ramp, then half a cosine from 1 (epoch W) to 0 (epoch E)."""
    if epoch < warmup_epochs:
        return warmup_factor(epoch, warmup_epochs=warmup_epochs)
    progress = min((epoch - warmup_epochs) / (max_epochs - warmup_epochs), 1.0)
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def linear_warmup_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return t/W for t < W, then (T - t)/(T - W), 0 from T on.

    Args:
        step: Optimizer updates done, t.
        warmup_steps: W.
        total_steps: T, above W.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps))


def factor_of(name: str, *, warmup_epochs: float, max_epochs: int) -> Callable[[float], float]:
    """Return the factor function (epoch -> multiplier of the group's lr) of a schedule other than `dassl`."""
    if name == "constant":
        return constant_factor
    if name == "warmup_constant":
        return functools.partial(warmup_factor, warmup_epochs=warmup_epochs)
    return functools.partial(warmup_cosine_factor, warmup_epochs=warmup_epochs, max_epochs=max_epochs)


def build_schedule(
    optimizer: Optimizer, name: str, *, warmup_epochs: float, max_epochs: int, steps_per_epoch: int = 1
) -> LambdaLR:
    """Return the `LambdaLR` that runs a schedule.

    Args:
        optimizer: Its groups hold their own base learning rates.
        name: A resolved name other than `dassl`.
        warmup_epochs: W of the ramp.
        max_epochs: E, where the cosine ends.
        steps_per_epoch: Scheduler steps per epoch: 1, or the optimizer updates of an epoch.
    """
    factor = factor_of(name, warmup_epochs=warmup_epochs, max_epochs=max_epochs)

    def factor_at_step(step: int) -> float:
        return factor(step / steps_per_epoch)

    # A plain function, not a callable object, so that the scheduler's state stays numbers only.
    return LambdaLR(optimizer, factor_at_step)


def build_linear_warmup(optimizer: Optimizer, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Return the `LambdaLR` that rises linearly from 0 and falls linearly to 0, moved once per optimizer update.

    The rates are those of transformers' `get_linear_schedule_with_warmup`.

    Args:
        optimizer: Its groups hold their own base learning rates.
        warmup_steps: Updates until these are reached.
        total_steps: Updates of the run, above `warmup_steps`.
    """

    def factor_at_step(step: int) -> float:
        return linear_warmup_factor(step, warmup_steps=warmup_steps, total_steps=total_steps)

    return LambdaLR(optimizer, factor_at_step)

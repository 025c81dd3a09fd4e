"""Learning-rate schedules, one step per epoch, with an optional warm-up in front."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

__all__ = ["AVAI_SCHEDS", "ConstantWarmupScheduler", "LinearWarmupScheduler", "build_lr_scheduler"]

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ["linear", "constant"]


class _WarmupScheduler(LRScheduler):
    """Follow `warmup_lr` for `warmup_epoch` epochs, then the successor from its start.

    Args:
        successor: Schedule over the same optimizer, just built.
        warmup_epoch: Number of warm-up epochs.
        verbose: Accepted for compatibility, without effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[float]:
        """Return the rate of each parameter group at `last_epoch`, which is below `warmup_epoch`."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group at `last_epoch`."""
        if self.last_epoch < self.warmup_epoch:
            return self.warmup_lr()
        return self.successor.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return own values and, under `successor`, the successor's: plain numbers and lists, no objects."""
        own = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "successor")}
        return {**own, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimizer is left alone."""
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        self.__dict__.update(own)


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warm-up at the rate `cons_lr`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float]:
        """Return `cons_lr` for each parameter group."""
        return [self.cons_lr] * len(self.base_lrs)


class LinearWarmupScheduler(_WarmupScheduler):
    """Warm-up along base * epoch / warmup_epoch; the first epoch, which would be 0, uses `min_lr`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float]:
        """Return the rate of each parameter group on the line."""
        if self.last_epoch == 0:
            return [self.min_lr] * len(self.base_lrs)
        return [base * self.last_epoch / self.warmup_epoch for base in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Return the schedule `OPTIM.LR_SCHEDULER`, behind a warm-up if `OPTIM.WARMUP_EPOCH` > 0.

    Raises:
        ValueError: If LR_SCHEDULER or WARMUP_TYPE is unknown.
    """
    schedule = _main_schedule(optimizer, optim_cfg)
    warmup_epoch = optim_cfg.WARMUP_EPOCH
    if warmup_epoch <= 0:
        return schedule
    if optim_cfg.WARMUP_TYPE not in AVAI_WARMUPS:
        raise ValueError(f"OPTIM.WARMUP_TYPE is {optim_cfg.WARMUP_TYPE!r}; expected one of {', '.join(AVAI_WARMUPS)}")
    if not optim_cfg.WARMUP_RECOUNT:
        schedule.last_epoch = warmup_epoch
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, schedule, warmup_epoch, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, schedule, warmup_epoch, optim_cfg.WARMUP_MIN_LR)


def _main_schedule(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    stepsize = optim_cfg.STEPSIZE
    steps = list(stepsize) if isinstance(stepsize, (list, tuple)) else [stepsize]
    if optim_cfg.LR_SCHEDULER == "single_step":
        step_size = steps[-1] if steps[-1] > 0 else optim_cfg.MAX_EPOCH
        return StepLR(optimizer, step_size=step_size, gamma=optim_cfg.GAMMA)
    if optim_cfg.LR_SCHEDULER == "multi_step":
        return MultiStepLR(optimizer, milestones=steps, gamma=optim_cfg.GAMMA)
    if optim_cfg.LR_SCHEDULER == "cosine":
        return CosineAnnealingLR(optimizer, T_max=optim_cfg.MAX_EPOCH)
    raise ValueError(f"OPTIM.LR_SCHEDULER is {optim_cfg.LR_SCHEDULER!r}; expected one of {', '.join(AVAI_SCHEDS)}")

"""Repairs that upstream Dassl 0.6.3 needs on current PyTorch; nothing is done to the bundled engine.

Numpy is not patched: upstream's `randaugment` and `*_policy` transforms need a name that numpy 1.24 removed, so
asking for them becomes a clear error. Atomic writing of checkpoints stays an advantage of the bundled engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dassl
import numpy as np
import torch
from dassl.data.transforms import transforms
from dassl.engine import TrainerBase
from dassl.engine import trainer as engine_trainer
from dassl.optim import lr_scheduler as schedulers
from dassl.utils import logger, torchtools
from torch.optim.lr_scheduler import LRScheduler

from dassl_host import trainer_state
from dassl_host.legacy_checkpoint import load_checkpoint

log = logging.getLogger(__name__)

# Class upstream builds -> its name in INPUT.TRANSFORMS.
_NUMPY_1_TRANSFORMS = {
    "ImageNetPolicy": "imagenet_policy",
    "CIFAR10Policy": "cifar10_policy",
    "SVHNPolicy": "svhn_policy",
    "RandAugment": "randaugment",
}


@dataclass(frozen=True)
class Repair:
    """One fault of upstream: how to notice it, what replaces the faulty part."""

    name: str
    fault: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def apply() -> list[str]:
    """Apply the repairs that are needed and return their names; a second call finds none."""
    if is_bundled():
        return []
    applied = [repair for repair in REPAIRS if repair.needed()]
    for repair in applied:
        repair.apply()
        log.info("Dassl %s repaired (%s): %s", dassl.__version__, repair.name, repair.fault)
    return [repair.name for repair in applied]


def is_bundled() -> bool:
    """Return True if the engine in use is the bundled one."""
    return getattr(dassl, "__bundled__", False)


# R1, R2: warm-up schedules -------------------------------------------------------------------------------------------


def _warmup_fails() -> bool:
    """Try the constructor: torch 2.7 removed the argument that upstream passes on."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    successor = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    try:
        schedulers.ConstantWarmupScheduler(optimizer, successor, 1, 0.1)
    except TypeError:
        return True
    return False


def _init_warmup(
    self: LRScheduler,
    optimizer: torch.optim.Optimizer,
    successor: LRScheduler,
    warmup_epoch: int,
    last_epoch: int = -1,
    verbose: bool = False,
) -> None:
    self.successor = successor
    self.warmup_epoch = warmup_epoch
    LRScheduler.__init__(self, optimizer, last_epoch)


def _warmup_state(self: LRScheduler) -> dict[str, Any]:
    return {**LRScheduler.state_dict(self), "successor": self.successor.state_dict()}


def _load_warmup_state(self: LRScheduler, state_dict: dict[str, Any]) -> None:
    own = dict(state_dict)
    self.successor.load_state_dict(own.pop("successor"))
    LRScheduler.load_state_dict(self, own)


def _repair_warmup_state() -> None:
    schedulers._BaseWarmupScheduler.state_dict = _warmup_state
    schedulers._BaseWarmupScheduler.load_state_dict = _load_warmup_state


# R3, R6: checkpoints (R4 is shared code) ------------------------------------------------------------------------------


def _repair_load_checkpoint() -> None:
    for module in (torchtools, dassl.utils, engine_trainer):
        module.load_checkpoint = load_checkpoint


def _save_model(
    self: TrainerBase,
    epoch: int,
    directory: str,
    is_best: bool = False,
    val_result: float | None = None,
    model_name: str = "",
) -> None:
    for name in self.get_model_names():
        state = trainer_state.checkpoint_state(self, name, epoch, val_result)
        torchtools.save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)


def _train(self: TrainerBase, start_epoch: int, max_epoch: int) -> None:
    """Upstream's loop, with the generators restored once every `before_train` has run."""
    self.start_epoch, self.max_epoch = start_epoch, max_epoch
    self.before_train()
    trainer_state.restore_rng(self)
    epochs = range(self.start_epoch, self.max_epoch)  # before_train may have moved the start
    for self.epoch in epochs:
        self.before_epoch()
        self.run_epoch()
        self.after_epoch()
    self.after_train()


def _repair_trainer_state() -> None:
    TrainerBase.save_model = _save_model
    TrainerBase.resume_model_if_exist = trainer_state.resume_trainer
    TrainerBase.train = _train


# R5: the log file ----------------------------------------------------------------------------------------------------


def _console_attribute(self: Any, name: str) -> Any:
    if name in ("console", "file"):  # not set yet: delegating would recurse
        raise AttributeError(name)
    return getattr(self.console, name)


def _close_file(self: Any) -> None:
    if self.__dict__.get("file") is not None:
        self.file.close()
        self.file = None


def _repair_logger() -> None:
    logger.Logger.__getattr__ = _console_attribute
    logger.Logger.close = _close_file


# Transforms ----------------------------------------------------------------------------------------------------------


def _refuse(transform: str) -> Callable[..., None]:
    def refuse(*args: Any) -> None:
        raise ValueError(
            f"INPUT.TRANSFORMS has {transform!r}, which upstream Dassl cannot run with numpy {np.__version__}; "
            "leave it out or set DASSL_HOST=bundled"
        )

    refuse.__name__ = f"refuse_{transform}"
    return refuse


def _transforms_crash() -> bool:
    refused = transforms.RandAugment.__name__.startswith("refuse_")
    return not hasattr(np, "int") and not refused


def _refuse_transforms() -> None:
    for class_name, transform in _NUMPY_1_TRANSFORMS.items():
        setattr(transforms, class_name, _refuse(transform))


REPAIRS = (
    Repair(
        "R1",
        "warm-up schedules pass an argument that torch 2.7 removed",
        _warmup_fails,
        lambda: setattr(schedulers._BaseWarmupScheduler, "__init__", _init_warmup),
    ),
    Repair(
        "R2",
        "warm-up schedules store a live object in the checkpoint",
        lambda: schedulers._BaseWarmupScheduler.state_dict is LRScheduler.state_dict,
        _repair_warmup_state,
    ),
    Repair(
        "R3",
        "torch 2.6 refuses to read checkpoints with objects",
        lambda: engine_trainer.load_checkpoint is not load_checkpoint,
        _repair_load_checkpoint,
    ),
    Repair(
        "R4",
        "load_model() cannot show a missing val_result",
        lambda: TrainerBase.load_model is not trainer_state.load_models,
        lambda: setattr(TrainerBase, "load_model", trainer_state.load_models),
    ),
    Repair(
        "R5",
        "Logger hides the console's attributes and closes stdout",
        lambda: not hasattr(logger.Logger, "__getattr__"),
        _repair_logger,
    ),
    Repair(
        "R6",
        "checkpoints lack best_result and the random generators",
        lambda: TrainerBase.save_model is not _save_model,
        _repair_trainer_state,
    ),
    Repair(
        "transforms",
        "randaugment and the policies need numpy.int, removed in numpy 1.24",
        _transforms_crash,
        _refuse_transforms,
    ),
)

"""Trainer registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dassl.utils import Registry, check_availability

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from dassl.engine.base import TrainerBase

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """Build the trainer that ``TRAINER.NAME`` names.

    Raises:
        ValueError: If no trainer of that name is registered (lists all names and the nearest one).
    """
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)

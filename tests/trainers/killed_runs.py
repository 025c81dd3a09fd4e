"""Runs in the tiny world that end from outside before a chosen batch, and the losses that they saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_world import build, make_cfg


class Killed(Exception):
    """Stands for a run that ends from outside."""


def train_until(
    world: Path,
    folder: Path,
    name: str,
    settings: dict[str, Any],
    *,
    n_batches: int,
    kill_at: int = -1,
    prepare: Callable[[Any], None] = lambda trainer: None,
) -> tuple[Any, list[float]]:
    """Train until batch `kill_at` of the run, which is not learned; return the trainer and its losses per unit.

    Args:
        world: What `write_world` returned.
        folder: Of the run; one that was killed there goes on.
        name: Of the trainer.
        settings: As `make_cfg` takes them.
        n_batches: Per epoch.
        kill_at: Counted over all epochs; -1 = never.
        prepare: Called with the built trainer.
    """
    trainer = build(make_cfg(world, folder, name, settings))
    losses, inner = [], trainer.compute_losses

    def compute(batch: Any) -> Any:
        if trainer.epoch * n_batches + trainer.batch_idx == kill_at:
            raise Killed
        found = inner(batch)
        losses.append(sum(part.item() for part in found.losses.values()) / found.weight)
        return found

    trainer.compute_losses = compute
    prepare(trainer)
    try:
        trainer.train()
    except Killed:
        trainer.close_writer()
    return trainer, losses

"""Going on inside an epoch: `OUT/<registered name>/latest.pth.tar`, and where a resumed run starts.

The file holds what Dassl's own checkpoint holds, and in `trainer_state.extra` how many batches of the epoch are done. Dassl's
pointer file names it until the epoch's own file takes its place, so the later of both is resumed, and by the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from clip_ext.files import replacing
from dassl_host import trainer_state
from trainers.epoch_order import Position

LATEST_MODEL = "latest.pth.tar"


class MidEpoch:
    """Saves and finds the place of a run inside an epoch.

    Attributes:
        seed: Of order and samples: `SEED`, or one that was drawn if that is negative; a resumed run keeps it.

    Args:
        trainer: Has Dassl's attributes and `accumulation_window()`.
        saves_per_epoch: How often `latest.pth.tar` is written inside an epoch, evenly spaced; 0 = never.
    """

    def __init__(self, trainer: Any, *, saves_per_epoch: int) -> None:
        self._trainer, self._saves = trainer, saves_per_epoch
        seed = trainer.cfg.SEED
        self.seed = seed if seed >= 0 else int(torch.randint(2**31, ()))
        self._done = 0  # batches done, of the state being saved
        self._start = 0  # batches done when the run was resumed, of its first epoch
        self._rng: dict[str, Any] | None = None

    def position(self) -> Position:
        """Return where the epoch that begins now starts."""
        trainer = self._trainer
        return Position(self.seed, trainer.epoch, self._start if trainer.epoch == trainer.start_epoch else 0)

    def tidy(self) -> None:
        """Clear away what killed saves left in the run folder; a first save without its pointer counts as none."""
        for name in self._trainer.get_model_names():
            folder = Path(self._trainer.output_dir, name)
            for part in [*folder.glob(".*.part"), *folder.glob("*.tmp")]:
                part.unlink()
            if folder.is_dir() and not (folder / trainer_state.POINTER).exists():
                (folder / LATEST_MODEL).unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()

    def resumed(self) -> None:
        """Keep the restored random state back until the first batch that runs; call it right after resuming."""
        if self._start:
            self._rng = trainer_state.take_rng(self._trainer)

    def before_batch(self) -> None:
        """Set the generators as they were at this place of the interrupted run, at the first batch after resuming."""
        if self._rng is not None:
            trainer_state.set_rng(self._rng)
            self._rng = None

    def is_due(self) -> bool:
        """Whether the batch just learned from ends an update after which the run is to be saved."""
        trainer = self._trainer
        first, size = trainer.accumulation_window()
        accumulated = trainer.settings.GRAD_ACCUM
        done, updates = trainer.batch_idx // accumulated + 1, -(-trainer.num_batches // accumulated)
        if trainer.batch_idx + 1 < first + size or done == updates:
            return False
        return done in {round(k * updates / (self._saves + 1)) for k in range(1, self._saves + 1)}

    def save(self) -> None:
        """Write the latest state of every registered model, then the pointer to it; each file appears whole or not at all."""
        trainer = self._trainer
        self._done = trainer.batch_idx + 1
        try:
            for name in trainer.get_model_names():
                state = trainer_state.checkpoint_state(trainer, name, trainer.epoch - 1)
                folder = Path(trainer.output_dir, name)
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / LATEST_MODEL, lambda file, state=state: torch.save(state, file))
                _write(folder / trainer_state.POINTER, lambda file: file.write(f"{LATEST_MODEL}\n".encode()))
        finally:
            self._done = 0

    def forget(self, directory: str) -> None:
        """Remove the latest states below `directory`: an epoch's own file has taken their place."""
        for name in self._trainer.get_model_names():
            Path(directory, name, LATEST_MODEL).unlink(missing_ok=True)

    def state(self) -> dict[str, int]:
        """Return what `trainer_state.extra` holds; an epoch's own file says that no batch of the next is done."""
        return {"seed": self.seed, "batches_done": self._done, "num_batches": self._trainer.num_batches}

    def load_state(self, state: dict[str, int]) -> None:
        """Take back what `state` returned.

        Raises:
            ValueError: If an epoch had another number of batches, so that the place cannot be found again.
        """
        if state["batches_done"] and state["num_batches"] != self._trainer.num_batches:
            raise ValueError(
                f"cannot resume inside an epoch: {LATEST_MODEL} was written with {state['num_batches']} batches per epoch, now "
                f"there are {self._trainer.num_batches}; expected the same training data and DATALOADER.TRAIN_X.BATCH_SIZE"
            )
        self.seed, self._start = state["seed"], state["batches_done"]


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())

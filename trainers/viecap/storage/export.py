"""Weights of finished epochs, and what the record says about them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainers.viecap.storage.artifact import NODE, WEIGHTS, read_record, write_record
from trainers.viecap.storage.weights import write_weights

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportPlan:
    """Which epochs are exported; the best one always is.

    Attributes:
        max_epoch: Epochs of the run; the last one is always exported.
        prefix: First part of the file names.
        every: Epochs between exports.
    """

    max_epoch: int
    prefix: str = "coco_prefix"
    every: int = 1

    def problems(self) -> list[str]:
        """Return one message per field that cannot be followed."""
        if not self.prefix or Path(self.prefix).name != self.prefix or "\\" in self.prefix:
            return [f"{NODE}.PREFIX is {self.prefix!r}; expected a file name without folders"]
        return []

    def is_planned(self, epoch: int) -> bool:
        """Whether a finished epoch, from 1, is exported whatever its score."""
        return epoch % self.every == 0 or epoch == self.max_epoch

    def file_name(self, epoch: int) -> str:
        """Return the file name of a finished epoch; it counts from 0, as the original does."""
        return f"{self.prefix}-{epoch - 1:03d}{SUFFIX}"


class Exporter:
    """Exports epochs of one run, after `write_artifact` has written the rest.

    Args:
        run: Output folder of the run.
        plan: What to export.
    Raises:
        ValueError: If the plan cannot be followed: all problems at once.
    """

    def __init__(self, run: str | Path, plan: ExportPlan) -> None:
        problems = plan.problems()
        if problems:
            raise ValueError("\n".join(problems))
        self._run, self._plan = Path(run), plan
        self._written = 0  # epoch whose file this process has just written

    def export(
        self, epoch: int, model: nn.Module, *, scores: Mapping[str, float] | None = None, is_best: bool = False
    ) -> Path | None:
        """Write the weights of a finished epoch if they are due, then the record, then remove what is not kept.

        May be called twice for an epoch, as the best and as a finished one; the weights are written once.

        Args:
            epoch: Finished epochs, from 1.
            model: As it is now.
            scores: Metric -> value on validation, as far as known.
            is_best: Whether no epoch before was better.
        Returns:
            The file; None if the epoch is not due.
        """
        record = read_record(self._run)
        entry = next((each for each in record["epochs"] if each["epoch"] == epoch), None)
        entry = entry or {"epoch": epoch, "file": None, "scores": {}}
        due = is_best or self._plan.is_planned(epoch)
        if due and self._written != epoch:
            path = self._run / WEIGHTS / self._plan.file_name(epoch)
            write_weights(path, model, epoch)
            entry["file"] = path.relative_to(self._run).as_posix()
            self._written = epoch
            logger.info("Weights of epoch %d (finished epochs: %d) saved to %s", epoch - 1, epoch, path)
        entry["scores"] = {**entry["scores"], **(scores or {})}
        # A resumed run may repeat epochs that were already exported; those behind it are no longer the run's.
        later = [each for each in record["epochs"] if each["epoch"] > epoch]
        record["epochs"] = [each for each in record["epochs"] if each["epoch"] < epoch] + [entry]
        record["last"] = epoch if due else record["last"]
        record["best"] = epoch if is_best or record["best"] == epoch else self._earlier(record["best"], epoch)
        removed = [*later, *self._drop(record)]
        write_record(self._run, record)
        self._remove(removed, record)
        return self._run / entry["file"] if due else None

    @staticmethod
    def _earlier(best: int | None, epoch: int) -> int | None:
        return best if best is not None and best < epoch else None

    def _drop(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Take the files that are not kept out of the record; return copies of their entries."""
        stored = [entry for entry in record["epochs"] if entry["file"]]
        planned = [entry["epoch"] for entry in stored if self._plan.is_planned(entry["epoch"])]
        kept = {*planned, record["best"], record["epochs"][-1]["epoch"]}
        dropped = [dict(entry) for entry in stored if entry["epoch"] not in kept]
        for entry in record["epochs"]:
            if entry["epoch"] not in kept:
                entry["file"] = None
        return dropped

    def _remove(self, entries: list[dict[str, Any]], record: Mapping[str, Any]) -> None:
        used = {entry["file"] for entry in record["epochs"]}
        for entry in entries:
            if entry["file"] and entry["file"] not in used:
                (self._run / entry["file"]).unlink(missing_ok=True)

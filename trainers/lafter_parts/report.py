"""The report of a run: one row per epoch, kept in `report.json` beside the log; a label-free run's row reads no label."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_ext.pseudo_labels import LabelReport, report_labels
from trainers.lafter_parts.targets import TrainingTarget

logger = logging.getLogger(__name__)

FILE_NAME = "report.json"


class EpochRecorder:
    """Collects what one epoch's batches show: the student's probabilities, the labels it learns from, the losses."""

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._probs: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._confidence: list[Tensor] = []
        self._counted: list[Tensor] = []
        self._losses: dict[str, list[Tensor]] = {}

    def add(self, index: Tensor, logits: Tensor, target: TrainingTarget, losses: dict[str, Tensor]) -> None:
        """Add a batch: positions (B,), student logits (B, C), its targets and named losses."""
        self._index.append(index.cpu())
        self._probs.append(logits.detach().softmax(dim=-1).cpu())
        self._labels.append(target.labels.cpu())
        self._confidence.append(target.confidence.cpu())
        self._counted.append(target.counted.cpu())
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value.detach().cpu())

    def label_report(self) -> LabelReport:
        """Describe the student's view of the epoch's images; `agreement` is with the labels it learns from."""
        return report_labels(torch.cat(self._probs), teacher_labels=torch.cat(self._labels))

    def labels(self) -> dict[int, int]:
        """Return the label that was learned from, by position in the training set."""
        return dict(zip(torch.cat(self._index).tolist(), torch.cat(self._labels).tolist(), strict=True))

    def mean_losses(self) -> dict[str, float]:
        """Return the epoch's mean losses by name; `loss` is their sum."""
        figures = {name: torch.stack(values).mean().item() for name, values in self._losses.items()}
        return figures | {"loss": sum(figures.values())}

    def teacher_figures(self) -> dict[str, float]:
        """Return the teacher's mean confidence and the share of images that counted."""
        confidence, counted = torch.cat(self._confidence), torch.cat(self._counted)
        return {"teacher_confidence": confidence.mean().item(), "counted": counted.float().mean().item()}


class RunReport:
    """All rows of a run; written after every epoch, so that a resumed run continues it.

    Args:
        folder: Output folder of the run.
        label_free: The labels learned from are a teacher's. Otherwise they are the data set's, and agreement with them is the
            accuracy on the training views, and said to be.
    """

    def __init__(self, folder: str | Path, *, label_free: bool) -> None:
        self._path = Path(folder) / FILE_NAME
        self._label_free = label_free
        self.rows: list[dict[str, Any]] = []
        self._previous_labels: dict[int, int] = {}

    def resume(self, start_epoch: int) -> None:
        """Take over the rows before `start_epoch` (from 0) that an earlier start of this run has written."""
        if start_epoch > 0 and self._path.is_file():
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            self.rows = [row for row in rows if row["epoch"] <= start_epoch]

    def add_epoch(self, epoch: int, recorder: EpochRecorder, further: dict[str, Any]) -> LabelReport:
        """Append a row, log it, write the file and return the label report.

        Args:
            epoch: Finished epochs, from 1.
            recorder: Of that epoch.
            further: Other figures of the row.
        """
        health = recorder.label_report()
        row = {"epoch": epoch, **recorder.mean_losses(), **health.to_dict()}
        if self._label_free:
            labels = recorder.labels()
            row |= recorder.teacher_figures() | {"change_rate": self._change_rate(labels), "proxy": health.proxy_score}
            self._previous_labels = labels
        else:
            row["train_accuracy"] = row.pop("agreement")
            row.pop("change_rate")
        row |= further
        self.rows.append(row)
        self._log(row, n_classes=len(health.histogram))
        self._write()
        return health

    def _change_rate(self, labels: dict[int, int]) -> float | None:
        """Return the share of pseudo-labels that differ from the last epoch's; None after a start or a resume."""
        shared = [index for index in labels if index in self._previous_labels]
        if not shared:
            return None
        return sum(labels[index] != self._previous_labels[index] for index in shared) / len(shared)

    def _log(self, row: dict[str, Any], *, n_classes: int) -> None:
        if self._label_free:
            change = "n/a" if row["change_rate"] is None else f"{100 * row['change_rate']:.1f}%"
            head = f"Epoch {row['epoch']} without labels"
            detail = (
                f"agreement with the teacher {100 * row['agreement']:.1f}%, changed labels {change}, "
                f"counted {100 * row['counted']:.1f}%"
            )
        else:
            head, detail = f"Epoch {row['epoch']}", f"accuracy on the training views {100 * row['train_accuracy']:.1f}%"
        logger.info(
            "%s: confidence %.3f, entropy %.3f, %s, effective classes %.1f of %d",
            head, row["mean_confidence"], row["mean_entropy"], detail, row["effective_classes"], n_classes,
        )  # fmt: skip
        if row["collapsed"]:
            logger.warning("Collapse: the student uses only %.1f of %d classes", row["effective_classes"], n_classes)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".json.part")
        temporary.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        os.replace(temporary, self._path)

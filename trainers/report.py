"""The label-free report of a run: one row per epoch, kept in `report.json` beside the log."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_ext.pseudo_labels import LabelReport, report_labels
from trainers.pseudo_teacher import PseudoLabels

logger = logging.getLogger(__name__)

FILE_NAME = "report.json"


class EpochRecorder:
    """Collects what one epoch's batches show: the student's probabilities, the teacher's labels, the losses."""

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._probs: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._confidence: list[Tensor] = []
        self._counted: list[Tensor] = []
        self._losses: dict[str, list[Tensor]] = {}

    def add(self, index: Tensor, logits: Tensor, teacher: PseudoLabels, losses: dict[str, Tensor]) -> None:
        """Add a batch: positions (B,), student logits (B, C), its pseudo-labels and named losses."""
        self._index.append(index.cpu())
        self._probs.append(logits.detach().softmax(dim=-1).cpu())
        self._labels.append(teacher.labels.cpu())
        self._confidence.append(teacher.confidence.cpu())
        self._counted.append(teacher.counted.cpu())
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value.detach().cpu())

    def label_report(self) -> LabelReport:
        """Describe the student's view of the epoch's images, without labels."""
        return report_labels(torch.cat(self._probs), teacher_labels=torch.cat(self._labels))

    def labels(self) -> dict[int, int]:
        """Return the teacher's label by position in the training set."""
        return dict(zip(torch.cat(self._index).tolist(), torch.cat(self._labels).tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """Return the epoch's mean losses, teacher confidence and share of images that counted."""
        figures = {name: torch.stack(values).mean().item() for name, values in self._losses.items()}
        figures["loss"] = sum(figures.values())
        figures["teacher_confidence"] = torch.cat(self._confidence).mean().item()
        figures["counted"] = torch.cat(self._counted).float().mean().item()
        return figures


class RunReport:
    """All rows of a run; written after every epoch, so that a resumed run continues it.

    Args:
        folder: Output folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / FILE_NAME
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
        health, labels = recorder.label_report(), recorder.labels()
        change = self._change_rate(labels)
        row = {
            "epoch": epoch,
            **recorder.means(),
            **health.to_dict(),
            "change_rate": change,
            "proxy": health.proxy_score,
            **further,
        }
        self._previous_labels = labels
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
        change = "n/a" if row["change_rate"] is None else f"{100 * row['change_rate']:.1f}%"
        logger.info(
            "Epoch %d without labels: confidence %.3f, entropy %.3f, agreement with the teacher %.1f%%, changed labels %s, "
            "counted %.1f%%, effective classes %.1f of %d",
            row["epoch"], row["mean_confidence"], row["mean_entropy"], 100 * row["agreement"], change,
            100 * row["counted"], row["effective_classes"], n_classes,
        )  # fmt: skip
        if row["collapsed"]:
            logger.warning("Collapse: the student uses only %.1f of %d classes", row["effective_classes"], n_classes)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".json.part")
        temporary.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        os.replace(temporary, self._path)

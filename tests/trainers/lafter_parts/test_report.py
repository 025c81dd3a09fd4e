"""The report of a run: label-free figures, the collapse alarm, and what a supervised row is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainers.lafter_parts.report import EpochRecorder, RunReport
from trainers.lafter_parts.targets import TrainingTarget

N_CLASSES = 6


def recorder(predicted: list[int], labels: list[int]) -> EpochRecorder:
    """Record a student that is sure of `predicted`, learning from `labels`, in batches of two."""
    found = EpochRecorder()
    logits = 10.0 * torch.nn.functional.one_hot(torch.tensor(predicted), N_CLASSES).float()
    targets, everything = torch.tensor(labels), torch.arange(len(labels))
    for index in everything.split(2):
        target = TrainingTarget(targets[index], index % 2 == 0, torch.full((len(index),), 0.5))
        found.add(index, logits[index], target, {"main": torch.tensor(2.0), "consistency": torch.tensor(0.5)})
    return found


def test_label_free_row_has_the_figures_of_student_and_teacher(tmp_path: Path, caplog) -> None:
    report = RunReport(tmp_path, label_free=True)
    with caplog.at_level("INFO"):
        report.add_epoch(1, recorder([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4]), {"extra": 1})
        report.add_epoch(2, recorder([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]), {"extra": 2})
    first, second = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (first["epoch"], first["extra"], first["loss"], first["main"], first["consistency"]) == (1, 1, 2.5, 2.0, 0.5)
    assert first["agreement"] == pytest.approx(4 / 6) and first["effective_classes"] == pytest.approx(6)
    assert first["proxy"] == pytest.approx(4 / 6) and first["histogram"] == [1] * 6 and first["collapsed"] is False
    assert first["teacher_confidence"] == 0.5 and first["counted"] == 0.5 and first["mean_confidence"] > 0.99
    assert first["change_rate"] is None and second["change_rate"] == pytest.approx(1 / 6)
    assert caplog.messages[0].startswith("Epoch 1 without labels: confidence 1.000, ")
    assert "agreement with the teacher 66.7%, changed labels n/a, counted 50.0%" in caplog.messages[0]
    assert "train_accuracy" not in first


@pytest.mark.parametrize(("predicted", "alarm"), [([0, 0, 1, 1, 2, 3], False), ([0, 0, 0, 1, 1, 1], True)])
def test_collapse_alarm_sounds_below_half_of_the_classes(predicted: list[int], alarm: bool, tmp_path: Path, caplog) -> None:
    for label_free in (True, False):
        caplog.clear()
        RunReport(tmp_path, label_free=label_free).add_epoch(1, recorder(predicted, [0] * 6), {})
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == (["Collapse: the student uses only 2.0 of 6 classes"] if alarm else [])


def test_supervised_row_calls_agreement_with_labels_accuracy(tmp_path: Path, caplog) -> None:
    report = RunReport(tmp_path, label_free=False)
    with caplog.at_level("INFO"):
        report.add_epoch(1, recorder([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0]), {})
    (row,) = report.rows
    assert row["train_accuracy"] == 0.5
    assert {"agreement", "proxy", "change_rate", "teacher_confidence", "counted"} & set(row) == set()
    assert "without labels" not in caplog.text and "accuracy on the training views 50.0%" in caplog.text


def test_resumed_report_keeps_the_rows_before_its_start(tmp_path: Path) -> None:
    first = RunReport(tmp_path, label_free=True)
    for epoch in (1, 2, 3):
        first.add_epoch(epoch, recorder([0, 1], [0, 1]), {})
    second = RunReport(tmp_path, label_free=True)
    second.resume(2)
    assert [row["epoch"] for row in second.rows] == [1, 2]

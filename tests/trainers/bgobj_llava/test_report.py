"""What the reports of a run say."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_llavas import random_llava

from trainers.base import ParameterGroup
from trainers.bgobj_llava.report import RunReport, describe_parameters, format_parameters


def test_every_number_is_counted_once() -> None:
    model, _ = random_llava(dtype=torch.bfloat16)
    separators = torch.nn.Parameter(torch.zeros(4, 96))
    projector = list(model.model.multi_modal_projector.float().parameters())
    groups = [ParameterGroup("projector", projector, 1.0, 0.0), ParameterGroup("separators", [separators], 0.2, 0.0)]
    rows = {row.name: row for row in describe_parameters(model, groups)}
    assert list(rows) == ["projector", "separators", "vision_tower", "lm_head", "language_model"]
    assert (rows["separators"].numbers, rows["separators"].lr_mult, rows["separators"].dtype) == (4 * 96, 0.2, "float32")
    assert rows["projector"].tensors == 4
    assert rows["vision_tower"].dtype == "bfloat16"
    assert not rows["vision_tower"].trainable
    total = sum(parameter.numel() for parameter in model.parameters()) + separators.numel()
    assert sum(row.numbers for row in rows.values()) == total


def test_table_is_written(tmp_path: Path) -> None:
    model, _ = random_llava()
    head = ParameterGroup("head", list(model.lm_head.parameters()), 0.5, 0.0)
    rows = describe_parameters(model, [head])
    report = RunReport(tmp_path / "run")
    report.add_parameters(rows)
    text = (tmp_path / "run" / "trainable_parameters.txt").read_text("utf-8")
    assert text.strip() == format_parameters(rows)
    numbers = sum(parameter.numel() for parameter in head.parameters)
    assert any(line.split()[:2] == ["head", "trainable"] and f"{numbers:,}" in line for line in text.splitlines())
    assert not any(line.startswith("lm_head") for line in text.splitlines())


def test_epochs_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = RunReport(tmp_path)
    report.add_facts(notes=["one"])
    with caplog.at_level(logging.INFO, "trainers"):
        report.add_epoch(1, {"answer_loss": 2.0}, accuracy=10.0)
        report.add_epoch(2, {"answer_loss": 1.5})
    assert "Epoch 2: answer_loss 1.5000 (-0.5000)" in caplog.text
    stored = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert stored["notes"] == ["one"]
    assert stored["epochs"][0] == {"epoch": 1, "losses": {"answer_loss": 2.0}, "accuracy": 10.0}
    assert stored["comparison"] == [{"epochs": [1, 2], "change": {"answer_loss": -0.5}}]


def test_a_resumed_run_keeps_its_earlier_epochs(tmp_path: Path) -> None:
    first = RunReport(tmp_path)
    for epoch in (1, 2):
        first.add_epoch(epoch, {"loss": float(epoch)})
    second = RunReport(tmp_path)
    second.resume(1)
    second.add_epoch(2, {"loss": 9.0})
    stored = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["losses"]["loss"] for row in stored["epochs"]] == [1.0, 9.0]
    fresh = RunReport(tmp_path)
    fresh.resume(0)
    assert fresh.epochs == []

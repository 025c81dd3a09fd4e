"""What the report of a run says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.parameter_groups import ParameterGroup
from trainers.run_report import ParameterRow, RunReport, describe_parameters, format_parameters

PARTS = ("tower", "head")


def build_model() -> nn.ModuleDict:
    return nn.ModuleDict({"head": nn.Linear(4, 3), "tower": nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4)).bfloat16()})


def describe(model: nn.Module, *groups: ParameterGroup) -> list[ParameterRow]:
    return describe_parameters(model, groups, parts=PARTS, part_of=lambda name: name.split(".")[0])


def test_every_number_is_counted_once() -> None:
    model = build_model()
    separators = nn.Parameter(torch.zeros(4, 96))
    first = list(model["tower"][0].float().parameters())
    groups = [ParameterGroup("first", first, 1.0, 0.0), ParameterGroup("separators", [separators], 0.2, 0.0)]
    rows = {row.name: row for row in describe(model, *groups)}
    assert list(rows) == ["first", "separators", "tower", "head"]
    assert (rows["separators"].numbers, rows["separators"].lr_mult, rows["separators"].dtype) == (4 * 96, 0.2, "float32")
    assert (rows["first"].tensors, rows["first"].numbers) == (2, 12)
    assert (rows["tower"].numbers, rows["tower"].dtype, rows["tower"].trainable) == (20, "bfloat16", False)
    total = sum(parameter.numel() for parameter in model.parameters()) + separators.numel()
    assert sum(row.numbers for row in rows.values()) == total


def test_table_is_written(tmp_path: Path) -> None:
    model = build_model()
    rows = describe(model, ParameterGroup("answers", list(model["head"].parameters()), 0.5, 0.0))
    report = RunReport(tmp_path / "run")
    report.add_parameters(rows)
    text = (tmp_path / "run" / "trainable_parameters.txt").read_text("utf-8")
    assert text.strip() == format_parameters(rows)
    assert any(line.split()[:4] == ["answers", "trainable", "2", "15"] for line in text.splitlines())
    assert any(line.split()[:4] == ["in", "all", "trainable", "15"] and "31.91%" in line for line in text.splitlines())
    assert not any(line.startswith("head") for line in text.splitlines())


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

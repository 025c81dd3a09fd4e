"""Calling predict.py in this process, and reading what it wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import predict


def call(run: Path, inputs: Path | list[Path], output: Path, *words: str) -> int:
    """Run predict.py's main; return the exit code."""
    inputs = inputs if isinstance(inputs, list) else [inputs]
    with pytest.raises(SystemExit) as stop:
        predict.main(["--model-dir", str(run), "--input", *map(str, inputs), "--output", str(output), *words])
    return stop.value.code


def fails(capsys: pytest.CaptureFixture[str], message: str, run: Path, inputs: Path, output: Path, *words: str) -> None:
    """Check that predicting ends with code 2, one message and nothing written."""
    before = output.read_bytes() if output.is_file() else None
    assert call(run, inputs, output, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (output.read_bytes() if output.is_file() else None) == before


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def edit_record(run: Path, **fields: Any) -> None:
    """Change fields of a run's run.json."""
    record = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(record | fields), encoding="utf-8")

"""Finding images, and writing files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prediction_calls import fails

from trainers.prediction import files as prediction_files


def test_inputs_and_outputs_that_cannot_be(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "expected a name ending in .csv or .jsonl", copied_run, photos, tmp_path / "out.xlsx")
    fails(capsys, f"there is no folder {tmp_path / 'none'}", copied_run, photos, tmp_path / "none" / "out.csv")
    fails(capsys, "no such file or folder", copied_run, tmp_path / "none.png", tmp_path / "out.csv")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    fails(capsys, "1 other file(s); expected names ending in .jpg", copied_run, tmp_path / "texts", tmp_path / "out.csv")


def test_an_interrupted_prediction_leaves_the_older_file(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"path": "a", "label": "x", "error": ""}
        raise KeyboardInterrupt

    for name in ("out.csv", "out.jsonl"):
        (tmp_path / name).write_text("older", encoding="utf-8")
        with pytest.raises(KeyboardInterrupt):
            prediction_files.write_rows(tmp_path / name, rows())
    assert {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()} == {"out.csv": "older", "out.jsonl": "older"}


def test_file_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for suffix in ("csv", "jsonl"):
        prediction_files.write_rows(tmp_path / f"out.{suffix}", [{"path": name, "error": ""}])
        assert "caf\\udce9.png" in (tmp_path / f"out.{suffix}").read_text("utf-8")

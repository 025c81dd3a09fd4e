"""scripts/caption_score.py: scores of a file, and errors in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scripts.caption_score import main
from trainers.evaluators import java_metrics
from trainers.evaluators.caption_rows import read_rows, score_rows

ROWS = [
    {"split": "in_domain", "image_name": "0.jpg", "captions": ["A red bus.", "A bus on a road."], "prediction": "A red bus."},
    {"split": "out_domain", "image_name": "1.jpg", "captions": ["Two dogs (brown) play."], "prediction": "Two dogs."},
    {"split": "out_domain", "image_name": "2.jpg", "captions": ["A man's hat."], "prediction": "a hat"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "overall_generated_captions.json"
    path.write_text(json.dumps(ROWS), "utf-8")
    return path


def test_all_scores_are_printed_and_those_of_each_split(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--result_file_path", str(file)]) == 0
    printed = dict(re.findall(r"^\* (\S+): ([\d.]+)%$", capsys.readouterr().out, re.M))
    expected = score_rows(read_rows(file))
    assert list(printed) == list(expected) and "out_domain/CIDEr" in printed
    assert [float(value) for value in printed.values()] == pytest.approx(list(expected.values()), abs=0.005)


def test_file_that_cannot_be_scored_is_told_on_one_screen(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(json.dumps([ROWS[0], {**ROWS[1], "captions": []}]), "utf-8")
    assert main(["--result_file_path", str(file)]) == 1
    assert main(["--result_file_path", str(file.with_name("none.json"))]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "row 1: 'captions' is empty" in said.err and "there is no file" in said.err


def test_java_is_checked_first(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics, "_package", lambda: None)
    assert main(["--result_file_path", "none.json", "--java", "meteor"]) == 1
    assert "--java meteor needs the package pycocoevalcap" in capsys.readouterr().err
    monkeypatch.setattr(java_metrics, "find_problems", lambda names, key: [])
    monkeypatch.setattr(java_metrics, "score", lambda name, references, candidates, groups: [0.5] * len(groups))
    assert main(["--result_file_path", str(file), "--java", "meteor"]) == 0
    assert "* METEOR: 50.00%" in capsys.readouterr().out


def test_bad_java_tool_is_told(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> list[float]:
        raise RuntimeError("METEOR gave no result")

    monkeypatch.setattr(java_metrics, "find_problems", lambda names, key: [])
    monkeypatch.setattr(java_metrics, "score", fail)
    assert main(["--result_file_path", str(file), "--java", "meteor"]) == 1
    assert "METEOR gave no result" in capsys.readouterr().err

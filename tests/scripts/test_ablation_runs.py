"""Tables of parts: every row runs once per seed, and the figures are mean and sample deviation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import ablation_runs  # noqa: E402

ROWS = {"full": (), "no noise, at all": ("TRAINER.VIECAP.NOISE_VARIANCE", "0.0")}


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ablation_runs.add_arguments(parser, config_file="recipe.yaml", output="output/table")
    return ablation_runs.parse(parser, words)


def test_spread_is_the_sample_deviation() -> None:
    assert ablation_runs.spread([1.0, 3.0]) == "2.00 +- 1.41"
    assert ablation_runs.spread([1.5]) == "1.50"


def test_the_table_has_every_row_and_all_seeds() -> None:
    asked = []

    def run(row: str, seed: int) -> dict[str, float]:
        asked.append((row, seed))
        return {"a": 10.0 * seed, **({"b": 1.0} if row == "one" else {})}

    lines = ablation_runs.make_table(["one", "two"], [1, 2], run, ["b", "a"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["row", "b", "a"]
    assert cells[2:] == [["one", "1.00 +- 0.00", "15.00 +- 7.07"], ["two", "", "15.00 +- 7.07"]]
    assert asked == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]


def test_a_row_is_trained_and_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(ablation_runs, "run_training", trained.append)
    args = parse(["--output", str(tmp_path), "--", "OPTIM.MAX_EPOCH", "1"])
    for _ in range(2):
        runs = ablation_runs.AblationRuns(args, "ViECap", ROWS, lambda folder: {"CIDEr": 3.0})
        assert runs.run("no noise, at all", 4) == {"CIDEr": 3.0}
    (words,) = trained
    assert words[words.index("--seed") + 1] == "4" and words[words.index("--config-file") + 1] == "recipe.yaml"
    assert words[-4:] == ["OPTIM.MAX_EPOCH", "1", "TRAINER.VIECAP.NOISE_VARIANCE", "0.0"]
    assert runs.folder("no noise, at all", 4) == tmp_path / "no_noise_at_all" / "seed4"


def test_a_row_that_is_no_training_is_made_by_its_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_runs, "run_training", lambda words: pytest.fail("trained"))
    made = []
    others = {"shuffled": lambda seed, folder: made.append((seed, folder))}
    runs = ablation_runs.AblationRuns(parse(["--output", str(tmp_path)]), "ViECap", ROWS, lambda folder: {"a": 1.0}, others)
    assert runs.run("shuffled", 2) == {"a": 1.0}
    assert made == [(2, tmp_path / "shuffled" / "seed2")]


def test_settings_come_in_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--", "OPTIM.MAX_EPOCH"])
    assert "KEY VALUE pairs expected, got OPTIM.MAX_EPOCH" in capsys.readouterr().err

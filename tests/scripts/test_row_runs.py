"""Rows of result tables: what is run, what is not run again, and what the table says."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import ablate_stages  # noqa: E402
import compare_trainers  # noqa: E402
import row_runs  # noqa: E402
from row_runs import Measured, Row  # noqa: E402

import train  # noqa: E402
from trainers import runs  # noqa: E402

BASELINE = Row("zero-shot", "ZeroshotCLIP", "zeroshot_clip")


def store_finished_run(folder: Path, accuracy: float, *, status: str = "finished") -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status}), "utf-8")
    results = {"test": {"accuracy": accuracy}, "val": {"accuracy": accuracy + 1}}
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    (folder / row_runs.SECONDS_FILE).write_text("7.0", "utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_gives_mean_sample_deviation_and_gain_over_the_first_row():
    table = row_runs.format_table({"base": Measured([50.0, 50.0], [1.0, 3.0]), "tuned": Measured([60.0, 64.0], [10.0, 20.0])})
    base, tuned = table.splitlines()[2:]
    assert cells(base) == ["base", "50.00 +- 0.00", "+0.00", "2"]
    assert cells(tuned) == ["tuned", "62.00 +- 2.83", "+12.00", "15"]


def test_table_of_one_seed_has_no_spread_and_shows_validation_where_there_is_one():
    assert "+-" not in row_runs.format_table({"base": Measured([50.0], [1.0])})
    assert cells(row_runs.format_table({"base": Measured([50.0], [1.0], [51.0])}).splitlines()[2])[1] == "51.00"


def test_finished_runs_are_read_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(row_runs.subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    for seed, accuracy in ((1, 60.0), (2, 70.0)):
        store_finished_run(tmp_path / BASELINE.slug / f"seed{seed}", accuracy)
    measured = row_runs.run_table([BASELINE], [1, 2], tmp_path, "data", with_val=True)
    assert measured == {"zero-shot": Measured([60.0, 70.0], [7.0, 7.0], [61.0, 71.0])}


def test_an_unfinished_run_is_started_again(tmp_path, monkeypatch):
    store_finished_run(tmp_path / BASELINE.slug / "seed1", 60.0, status="failed")
    commands = []
    monkeypatch.setattr(row_runs, "_call", lambda command, *_: commands.append(command))
    row_runs.run_row(BASELINE, 1, tmp_path, "data")
    assert len(commands) == 1 and "--seed" in commands[0]


def test_validation_is_measured_with_the_last_weights(tmp_path, monkeypatch):
    row = Row("tuned", "LaFTer", "lafter")
    folder = tmp_path / row.slug / "seed1"
    store_finished_run(folder, 60.0)
    (folder / "results.json").write_text(json.dumps({"test": {"accuracy": 60.0}}), "utf-8")
    (folder / "adapt").mkdir()
    (folder / "adapt" / "checkpoint").write_text("model.pth.tar-12\n", "utf-8")
    commands = []

    def measure(command, *_):
        commands.append(command)
        (folder / "results.json").write_text(json.dumps({"test": {"accuracy": 60.0}, "val": {"accuracy": 61.0}}), "utf-8")

    monkeypatch.setattr(row_runs, "_call", measure)
    assert row_runs.run_row(row, 1, tmp_path, "data", with_val=True) == (60.0, 7.0, 61.0)
    (command,) = commands
    assert command[command.index("--load-epoch") + 1] == "12" and command[-2:] == ["TEST.SPLIT", "val"]


def test_a_failing_run_ends_the_table_with_its_last_lines(tmp_path):
    row = Row("broken", "ZeroshotCLIP", "zeroshot_clip", (".PREC", "fp8"))
    with pytest.raises(SystemExit, match="broken failed"):
        row_runs.run_row(row, 1, tmp_path / "runs", str(tmp_path / "data"))


ALL_ROWS = [*compare_trainers.ROWS, *ablate_stages.build_rows("tiny12")]


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.slug)
def test_every_row_is_a_command_that_its_trainer_accepts(row):
    from dassl.engine import TRAINER_REGISTRY

    words = ["--trainer", row.trainer, "--dataset-config-file", row_runs.DATASET_CONFIG]
    words += ["--config-file", f"configs/trainers/{row.folder}/{row.config}.yaml", *row.words, "USE_CUDA", "False"]
    cfg = runs.build_cfg(train.parse_args(words))
    trainer_class = TRAINER_REGISTRY.get(row.trainer)
    trainer_class.check_cfg(object.__new__(trainer_class), cfg)


@pytest.mark.parametrize("rows", [compare_trainers.ROWS, ablate_stages.build_rows("tiny12")], ids=["compare", "ablate"])
def test_rows_have_folders_of_their_own_and_differ(rows):
    assert len({row.slug for row in rows}) == len(rows)
    assert len({(row.trainer, row.config, tuple(row.words)) for row in rows}) == len(rows)

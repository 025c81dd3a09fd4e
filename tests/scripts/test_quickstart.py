"""The quickstart's table and report say what was measured; its folder is never overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import quickstart  # noqa: E402


def measured(*rows):
    return {title: quickstart.Measured(accuracy, seconds) for title, accuracy, seconds in rows}


def test_table_gives_mean_sample_deviation_and_gain_over_the_first_row():
    table = quickstart.format_table(measured(("base", [50.0, 50.0], [1.0, 3.0]), ("tuned", [60.0, 64.0], [10.0, 20.0])))
    base, tuned = table.splitlines()[2:]
    assert [cell.strip() for cell in base.split("|")[1:-1]] == ["base", "50.00 +- 0.00", "+0.00", "2"]
    assert [cell.strip() for cell in tuned.split("|")[1:-1]] == ["tuned", "62.00 +- 2.83", "+12.00", "15"]


def test_table_of_one_seed_has_no_spread():
    assert "+-" not in quickstart.format_table(measured(("base", [50.0], [1.0])))


def test_rows_name_configs_that_exist():
    for row in quickstart.ROWS:
        assert (ROOT / "configs" / "trainers" / row.folder / "tiny12.yaml").is_file()
    assert (ROOT / quickstart.DATASET_CONFIG).is_file()


def test_report_links_the_pictures_of_the_first_seed(tmp_path):
    for seed in (1, 2):
        picture = tmp_path / "lafter" / f"seed{seed}" / "losses.png"
        picture.parent.mkdir(parents=True)
        picture.touch()
    report = quickstart.write_report(tmp_path, "TABLE", [1, 2]).read_text("utf-8")
    assert "TABLE" in report and "(lafter/seed1/losses.png)" in report and "seed2/losses" not in report


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "old").touch()
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "is not empty" in done.stderr


def test_a_failing_run_ends_the_quickstart_with_its_last_lines(tmp_path):
    row = quickstart.Row("broken", "ZeroshotCLIP", "zeroshot_clip", ("TRAINER.ZEROSHOTCLIP.PREC", "fp8"))
    with pytest.raises(SystemExit, match="broken failed"):
        quickstart.run_row(row, 1, tmp_path / "runs", str(tmp_path / "data"))

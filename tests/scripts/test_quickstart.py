"""The quickstart's rows and report; its folder is never overwritten."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import quickstart  # noqa: E402


def test_rows_name_configs_that_exist():
    for row in quickstart.ROWS:
        assert (ROOT / "configs" / "trainers" / row.folder / f"{row.config}.yaml").is_file()


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

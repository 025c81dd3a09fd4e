"""scripts/split_data.py writes the parts that CustomImages makes, in a file that can be carried elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from own_images import load, sizes, write_class_folders, write_picture

from scripts.split_data import main
from trainers.run_facts import hash_data, splits_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "pets")


def test_file_is_the_split_of_the_folder_and_works_elsewhere(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    assert main([str(folder), "-o", str(file), "DATASET.SPLIT_SEED", "3", "DATASET.TEST_PERCENT", "0.25"]) == 0
    assert all(not Path(name).is_absolute() for part in json.loads(file.read_text("utf-8")).values() for name, _, _ in part)
    expected = load(folder, SPLIT_SEED=3, TEST_PERCENT=0.25)
    moved = shutil.move(folder, tmp_path / "moved")
    found = load(file, IMAGE_DIR=str(moved))
    assert hash_data(splits_of(found)) == hash_data(splits_of(expected))
    assert found.split_kind == "given"


def test_file_beside_the_pictures_needs_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "-o", str(folder / "split.json")]) == 0
    assert "IMAGE_DIR" not in capsys.readouterr().out
    assert sizes(load(folder / "split.json")) == {"train_x": 18, "train_u": 0, "val": 3, "test": 3}


def test_pictures_that_cannot_be_split_exit_1_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "loose" / "a.png")
    (tmp_path / "loose" / "classes.txt").write_text("cat\ndog\n")
    assert main([str(tmp_path / "loose"), "-o", str(tmp_path / "s.json")]) == 1
    assert "1 of 1 pictures have no label" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("words", [["pets"], ["pets", "-o", "split.txt"], ["pets", "-o", "s.json", "DATASET.SEED", "1"]])
def test_wrong_command_line_exits_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2

"""scripts/check_data.py finds each planted fault, names its files, and is content with clean data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from own_images import write_class_folders, write_picture
from PIL import Image

from scripts.check_data import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight clean pictures in each of three classes."""
    return write_class_folders(tmp_path / "pets")


def truncate(folder: Path) -> None:
    path = folder / "cat" / "00.png"
    path.write_bytes(path.read_bytes()[:40])


def copy_within_class(folder: Path) -> None:
    for number in range(1, 8):  # whatever the split, two copies share a part
        shutil.copy(folder / "cat" / "00.png", folder / "cat" / f"{number:02d}.png")


def copy_into_test(folder: Path) -> None:
    write_class_folders(folder / "train")
    for name in ("cat", "dog", "emu"):
        shutil.rmtree(folder / name)
    write_class_folders(folder / "test", 8, ["cat"])


def copy_into_other_class(folder: Path) -> None:
    shutil.copy(folder / "cat" / "00.png", folder / "dog" / "00.png")


def turn(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 9), "red").save(folder / "cat" / "turned.jpg", exif=exif)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unreadable: 1": (truncate, "cat/00.png: "),
    "empty: 2": (lambda f: ((f / "fox").mkdir(), (f / "emu" / "00.png").write_bytes(b"")), "emu/00.png"),
    "same bytes twice": (copy_within_class, "cat/00.png = cat/01.png"),
    "same bytes in two parts: 8": (copy_into_test, "test/cat/00.png (test) = train/cat/00.png (train)"),
    "same bytes under two labels: 1": (copy_into_other_class, "cat/00.png (cat) = dog/00.png (dog)"),
    "classes with fewer than 5 pictures: 1": (lambda f: write_picture(f / "fox" / "a.png", 999), "fox: 1"),
    "turned by EXIF, which training does not do: 1": (turn, "cat/turned.jpg: orientation 6"),
    "colours other than RGB or grey: 1": (lambda f: Image.new("CMYK", (9, 9)).save(f / "cat" / "p.jpg"), "cat/p.jpg: CMYK"),
    "colours other than RGB or grey": (lambda f: Image.new("RGBA", (9, 9)).save(f / "cat" / "a.png"), "cat/a.png: RGBA"),
}


def test_clean_data_exits_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "folder of class folders, 24 pictures, 3 classes (cat 8, dog 8, emu 8)" in out
    assert "No findings." in out
    assert sorted(folder.rglob("*")) == before  # looking writes nothing


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_fault_is_found_and_exits_1(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant, line = FAULTS[kind]
    plant(folder)
    if kind.startswith("same bytes twice"):
        # Copies in two parts are another kind: the picture files of this class all go to train.
        assert main([str(folder), "DATASET.TEST_PERCENT", "0.01", "DATASET.VAL_PERCENT", "0"]) == 1
    else:
        assert main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert kind in out
    assert line in out
    assert "finding(s)" in out


def test_unlabelled_pictures_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_picture(tmp_path / "loose" / f"{number}.png", number)
    assert main([str(tmp_path / "loose")]) == 1
    assert "name the classes" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert main([str(tmp_path / "loose"), "DATASET.CLASSNAMES", str(tmp_path / "names.txt")]) == 0
    assert "3 pictures, 3 of them without a label, 2 classes (cat, dog)" in capsys.readouterr().out


def test_picture_listed_in_two_parts_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.json").write_text('{"train": [["cat/00.png", 0, "cat"]], "test": [["cat/00.png", 0, "cat"]]}')
    assert main([str(folder / "s.json")]) == 1
    assert "same bytes in two parts: 1" in capsys.readouterr().out


def test_missing_picture_of_a_table_is_named_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "t.csv").write_text("path,label\ncat/00.png,cat\ncat/gone.png,cat\ndog/00.png,dog\n")
    assert main([str(folder / "t.csv")]) == 1
    assert "cat/gone.png (t.csv, line 3): no such file" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nowhere"], ["."] + ["DATASET.FOO", "1"], [".", "OPTIM.LR", "1"], [".", "DATASET.SPLIT"]])
def test_wrong_command_line_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_long_lists_are_cut_unless_all_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    assert main([str(folder)]) == 1
    assert "... and 4 more; --all lists them" in capsys.readouterr().out
    assert main([str(folder), "--all"]) == 1
    assert "more; --all" not in capsys.readouterr().out

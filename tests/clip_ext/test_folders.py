"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_ext.folders import present_folder, replacing_folder


def fill(path: Path, text: str) -> None:
    with replacing_folder(path) as new:
        (new / "a.txt").write_text(text, encoding="utf-8")


def test_new_and_replaced_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "one"
    fill(folder, "first")
    (folder / "left.txt").touch()
    fill(folder, "second")
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert (folder / "a.txt").read_text("utf-8") == "second"


def test_a_failure_leaves_the_old_folder_alone(tmp_path: Path) -> None:
    fill(tmp_path / "one", "first")
    with pytest.raises(OSError, match="cannot write .*one: no space"), replacing_folder(tmp_path / "one") as new:
        (new / "a.txt").write_text("half", encoding="utf-8")
        raise OSError("no space")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one" / "a.txt").read_text("utf-8") == "first"


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "one"
    fill(folder, "first")
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", crash)
        fill(folder, "second")
    assert not folder.exists()
    assert (present_folder(folder) / "a.txt").read_text("utf-8") == "first"
    fill(folder, "third")
    assert present_folder(folder) == folder
    assert (folder / "a.txt").read_text("utf-8") == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_is_not_there_stays_itself(tmp_path: Path) -> None:
    assert present_folder(tmp_path / "none") == tmp_path / "none"

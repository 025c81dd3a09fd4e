"""Folders of own images: which form is found, and what is unclear and so refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_images import write_class_folders, write_picture

from datasets.image_files import find_classnames, list_images
from datasets.image_folders import read_folder


def test_pictures_have_torchvisions_endings_in_any_case(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.webp", "c.tiff", "d.gif", "e.txt", ".f.png"):
        (tmp_path / name).write_bytes(b"")
    images, others = list_images(tmp_path)
    assert [path.name for path in images] == ["a.JPG", "b.webp", "c.tiff"]
    assert others == 2


def test_classes_are_sorted_or_as_listed(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 2, ["dog", "cat"])
    assert read_folder(tmp_path, None).classnames == ("cat", "dog")
    listed = read_folder(tmp_path, ("emu", "dog", "cat"))
    assert [(row.path.parent.name, row.label) for row in listed.rows] == [("cat", 2), ("cat", 2), ("dog", 1), ("dog", 1)]
    with pytest.raises(ValueError, match="folders dog are no classes of the list; expected cat, cow"):
        read_folder(tmp_path, ("cat", "cow"))


def test_a_list_that_was_named_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "other.txt").write_text("c\nd\n")
    assert find_classnames("", tmp_path) == ("a", "b")
    assert find_classnames(str(tmp_path / "other.txt"), tmp_path) == ("c", "d")
    assert find_classnames("", tmp_path / "elsewhere") is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 2, ["train", "bus"])
    found = read_folder(tmp_path, None)
    assert (found.form, found.classnames) == ("folder of class folders", ("bus", "train"))
    assert {row.split for row in found.rows} == {""}


def test_classes_of_all_parts_are_one_list(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", 1, ["cat", "dog"])
    write_class_folders(tmp_path / "valid", 1, ["cat"])
    write_class_folders(tmp_path / "test", 1, ["bee"])
    found = read_folder(tmp_path, None)
    assert found.classnames == ("bee", "cat", "dog")
    assert sorted((row.split, row.label) for row in found.rows) == [("test", 0), ("train", 1), ("train", 2), ("val", 1)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png", "b.png"], "2 pictures without labels; name the classes.*classes.txt.*DATASET.CLASSNAMES"),
        (["a.png", "cat/b.png"], r"1 pictures and also folders \(cat\)"),
        (["cat/a.png", "cat/young/b.png", "dog/c.png"], "class folders hold folders: cat/young"),
        (["train/cat/a.png", "more/b.png"], "folders beside train: more"),
        (["test/cat/a.png", "val/cat/b.png"], "there is no train folder"),
        (["train/cat/a.png", "val/cat/b.png", "valid/cat/c.png"], "there are val and valid; keep one"),
        (["train/cat/a.png", "train/b.png"], "train holds pictures beside its class folders, e.g. b.png"),
        (["a.gif", "b.mp4"], r"no picture and no folder; found \['.gif', '.mp4'\]"),
        ([], "no picture and no folder; found nothing"),
    ],
)
def test_unclear_folder_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for number, name in enumerate(files):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, number) if path.suffix == ".png" else path.write_bytes(b"")
    (tmp_path / "photos").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path / "photos", None)

"""WikiArt: lists, folders, photographs beside the paintings, and what is refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from emotion_config import build
from fake_trees import write_image, write_lines

from clip_ext.style_names import wikiart_styles
from trainers.split_checks import find_split_problems

STYLES = wikiart_styles().names
PER_STYLE = {"train": 2, "val": 1}


def write_wikiart(folder: Path, *, lists: str = "", images: str = "") -> Path:
    """All styles with two paintings to learn from and one to choose by, as the published lists name them."""
    number = 0
    for part, count in PER_STYLE.items():
        rows = []
        for label, style in enumerate(STYLES):
            for k in range(count):
                name = f"{style}/painter_{part}-{k}, detail.jpg" if k else f"{style}/pëintre_{part}.jpg"
                write_image(folder / images / name, number)
                rows.append(f'"{name}",{label}' if "," in name else f"{name},{label}")
                number += 1
        write_lines(folder / lists / f"style_{part}.csv", rows)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_wikiart(tmp_path / "wikiart")
    return tmp_path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(9):
        write_image(tmp_path / "coco" / ("deep" if number % 2 else "") / f"{number}.jpg", 500 + number)
    write_lines(tmp_path / "coco" / "notes.txt", ["no picture"])
    return tmp_path / "coco"


def spoil(root: Path, part: str, line: int, row: str) -> None:
    file = root / "wikiart" / f"style_{part}.csv"
    rows = file.read_text("utf-8").splitlines()
    write_lines(file, [*rows[: line - 1], row, *rows[line:]])


def test_lists_give_27_styles_in_the_order_of_the_labels(root: Path) -> None:
    data = build("WikiArt", root)
    assert data.classnames == list(STYLES) and data.num_classes == 27
    assert data.lab2cname[4] == "Baroque"
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [54, 27, 27]
    assert all(item.classname == STYLES[item.label] == Path(item.impath).parent.name for item in (*data.train_x, *data.val))
    assert Counter(item.label for item in data.train_x) == dict.fromkeys(range(27), 2)


def test_val_is_tested_on_and_said_to_be(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = build("WikiArt", root)
    assert "every test figure of this run is a VALIDATION figure" in caplog.text
    assert [item.impath for item in data.test] == [item.impath for item in data.val]
    assert find_split_problems(data, lambda item: True, needs_val=True) == []


@pytest.mark.parametrize(
    ("inside", "lists", "images"), [("WikiArt", "", "images"), ("", "wikiart_csv", ""), ("wikiart", "wikiart_csv", "wikiart")]
)
def test_other_usual_places_are_found(tmp_path: Path, inside: str, lists: str, images: str) -> None:
    write_wikiart(tmp_path / inside, lists=lists, images=images)
    assert len(build("WikiArt", tmp_path).train_x) == 54


def test_absent_lists_are_an_error_that_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"style_train.csv and style_val.csv.*wikiart.*wikiart_csv.*CustomImages"):
        build("WikiArt", tmp_path)


def test_few_shots_leave_the_test_part_whole(root: Path) -> None:
    data = build("WikiArt", root, NUM_SHOTS=1)
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [27, 27, 27]


def test_all_faults_are_listed_together(root: Path) -> None:
    spoil(root, "train", 1, f"{STYLES[0]}/gone.jpg,0")
    spoil(root, "train", 3, f"{STYLES[1]}/pëintre_train.jpg,2")
    spoil(root, "train", 5, "Cubism/x.jpg,27")
    spoil(root, "val", 2, "no row at all")
    (root / "wikiart" / STYLES[3] / "pëintre_val.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"WikiArt: 5 problem\(s\)") as caught:
        build("WikiArt", root)
    message = str(caught.value)
    for words in (
        r"gone\.jpg: no such file", r"pëintre_val\.jpg: empty file",
        "style_train.csv, line 3: Action_painting.* has 2, Analytical", "style_train.csv, line 5: Cubism/x.jpg,27",
        "style_val.csv, line 2: no row at all", "from 0 to 26", "SKIP_BROKEN True",
    ):  # fmt: skip
        assert re.search(words, message), words


def test_unreadable_pictures_are_left_out_and_listed_never_replaced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = root / "wikiart" / STYLES[3] / "pëintre_train.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    with caplog.at_level(logging.INFO):
        data = build("WikiArt", root, SKIP_BROKEN=True)
    assert len(data.train_x) == 53 and len(data.val) == 27
    assert str(broken) not in {item.impath for item in data.train_x}
    assert f"unreadable: {broken}" in caplog.text


def test_a_folder_may_bear_another_spelling_of_its_style(root: Path) -> None:
    folder = root / "wikiart"
    (folder / "Art_Nouveau").rename(folder / "Art_Nouveau_Modern")
    for part in PER_STYLE:
        file = folder / f"style_{part}.csv"
        file.write_text(file.read_text("utf-8").replace("Art_Nouveau/", "Art_Nouveau_Modern/"), "utf-8")
    data = build("WikiArt", root)
    assert {item.label for item in data.train_x if "Modern" in item.impath} == {3}


def test_photographs_are_a_28th_class_of_at_most_a_27th_of_the_paintings(root: Path, photographs: Path) -> None:
    data = build("WikiArt", root, NON_ART=str(photographs))
    assert data.classnames == [*STYLES, "non_art"]
    train, val = ([item.impath for item in part if item.label == 27] for part in (data.train_x, data.val))
    assert (len(train), len(val)) == (54 // 27, 27 // 27)
    assert not set(train) & set(val)
    again = build("WikiArt", root, NON_ART=str(photographs))
    assert [item.impath for item in again.train_x] == [item.impath for item in data.train_x]
    others = [build("WikiArt", root, NON_ART=str(photographs), SPLIT_SEED=seed) for seed in (1, 2, 3)]
    assert any([item.impath for item in other.train_x] != [item.impath for item in data.train_x] for other in others)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photographs_are_refused(root: Path, tmp_path: Path, count: int) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(count):
        write_image(folder / f"{number}.jpg", 700 + number)
    message = rf"DATASET.NON_ART \(--non-art\) is .*photographs' with {count} pictures, none of them for training"
    with pytest.raises(ValueError, match=message):
        build("WikiArt", root, NON_ART=str(folder))


@pytest.mark.parametrize(("key", "value"), [("SPLIT", "coop"), ("SUBSAMPLE_CLASSES", "base"), ("DOWNLOAD", True)])
def test_keys_of_other_sets_are_refused(root: Path, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"DATASET.{key} is {value!r}"):
        build("WikiArt", root, **{key: value})

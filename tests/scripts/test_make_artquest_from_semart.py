"""scripts/make_artquest_from_semart.py writes tables that ArtQuest reads, without descriptions, and labels them."""

from __future__ import annotations

from pathlib import Path

import pytest
from vqa_trees import facts, load, write_images, write_text

from scripts.make_artquest_from_semart import main, turn_name

HEADER = "IMAGE_FILE\tDESCRIPTION\tAUTHOR\tTITLE\tTECHNIQUE\tDATE\tTYPE\tSCHOOL\tTIMEFRAME"


@pytest.fixture
def semart(tmp_path: Path) -> Path:
    folder = tmp_path / "SemArt"
    write_images(folder / "Images", ["a.jpg", "b.jpg", "c.jpg"])
    rows = {
        "train": "a.jpg\tBy DÜRER, whom it names.\tDÜRER, Albrecht\tA \u201cHare\u201d, grey\tWatercolour, 25 x 22 cm\t1502\t"
        "study\tGerman\t1501-1550",
        "val": "b.jpg\tNothing.\tUNKNOWN MASTER, Hungarian\tAltar\t-\t-\treligious\tOther\t1451-1500",
        "test": "c.jpg\tNothing.\tBOSCH\tShip\tOil on panel\t1500\tgenre\tNetherlandish\t1451-1500",
    }  # fmt: skip
    for part, row in rows.items():
        write_text(folder / f"semart_{part}.csv", HEADER, row, encoding="cp1252")
    return folder


def test_artquest_reads_what_is_written(semart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(semart), "-o", str(tmp_path / "artquest")]) == 0
    assert "UNOFFICIAL" in capsys.readouterr().out and "UNOFFICIAL" in (tmp_path / "artquest" / "UNOFFICIAL.txt").read_text()
    data = load(tmp_path, "ArtQuest")
    answers = {item.classname: answer for item, (_, _, (answer,)) in zip(data.train_x, facts(data.train_x), strict=True)}
    assert answers == {
        "artist": "albrecht dürer", "school": "german", "timeframe": "1501-1550", "type": "study", "technique": "watercolour",
        "title": "a \u201chare\u201d, grey",
    }  # fmt: skip
    assert {item.classname for item in data.val} == {"artist", "school", "timeframe", "type", "title"}  # no technique is known
    assert len(data.test) == 6 and "whom it names" not in (tmp_path / "artquest" / "train.csv").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "turned"),
    [("gogh, vincent van", "vincent van gogh"), ("bosch", "bosch"), ("unknown master, french", "unknown master, french"),
     ("master of flémalle", "master of flémalle")],
)  # fmt: skip
def test_names_are_turned(name: str, turned: str) -> None:
    assert turn_name(name) == turned


@pytest.mark.parametrize("damage", ["missing", "column", "cells", "encoding"])
def test_tables_that_cannot_be_read_write_nothing(
    semart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    file, words = semart / "semart_val.csv", []
    if damage == "missing":
        file.unlink()
    elif damage == "column":
        write_text(file, HEADER.replace("SCHOOL", "PLACE"), "b.jpg" + "\tx" * 8)
    elif damage == "cells":
        write_text(file, HEADER, "b.jpg\tx")
    else:
        words = ["--encoding", "utf-8"]
    assert main([str(semart), "-o", str(tmp_path / "artquest"), *words]) == 1
    expected = {"missing": "no file", "column": "no column SCHOOL", "cells": "_val.csv, line 2", "encoding": "as --encoding"}
    assert expected[damage] in capsys.readouterr().err
    assert not (tmp_path / "artquest").exists()

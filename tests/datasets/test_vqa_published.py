"""OCR-VQA and TextVQA as their authors publish them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vqa_trees import facts, load, write_images, write_json


def cover(split: int, *pairs: tuple[str, str], url: str = "http://images.example/51abc.jpg") -> dict[str, Any]:
    questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
    return {"imageURL": url, "questions": questions, "answers": answers, "title": "T", "genre": "G", "split": split}


@pytest.fixture
def covers(tmp_path: Path) -> dict[str, Any]:
    """Content of a small dataset.json, and the pictures of it below `ocr_vqa`."""
    write_images(tmp_path / "ocr_vqa" / "images", ["0001.jpg", "0002.gif", "0003.jpg", "0004.jpg"])
    return {
        "0001": cover(1, ("Who wrote this?", "A. Author"), ("Is it a novel?", "No")),
        "0002": cover(2, ("What is the title?", "Tea"), url="http://images.example/x/61y.gif?size=2"),
        "0003": cover(3, ("Is it a novel?", "Yes"), url=""),
        "0004": cover(1, ("What is the genre?", "Travel"), url="http://images.example/71z.png"),  # converted since
    }


@pytest.mark.parametrize("folder", ["ocr_vqa", "OCR-VQA-200K"])
def test_ocr_vqa_has_the_three_parts_of_its_file(tmp_path: Path, covers: dict[str, Any], folder: str) -> None:
    (tmp_path / "ocr_vqa").rename(tmp_path / folder)
    write_json(tmp_path / folder / "dataset.json", covers)
    data = load(tmp_path, "OCRVQA")
    assert data.split_kind == "given" and data.classnames == ["vqa"]
    assert facts(data.train_x) == [
        ("0001.jpg", "Who wrote this?", ["A. Author"]),
        ("0001.jpg", "Is it a novel?", ["No"]),
        ("0004.jpg", "What is the genre?", ["Travel"]),
    ]
    assert facts(data.val) == [("0002.gif", "What is the title?", ["Tea"])]
    assert facts(data.test) == [("0003.jpg", "Is it a novel?", ["Yes"])]
    assert [item.extras["question_id"] for item in data.train_x] == ["0001-1", "0001-2", "0004-1"]


def test_ocr_vqa_reports_what_is_wrong_and_skips_it_if_asked(tmp_path: Path, covers: dict[str, Any]) -> None:
    (tmp_path / "ocr_vqa" / "images" / "0004.jpg").unlink()
    covers |= {"0005": cover(4, ("Q", "A")), "0006": {**cover(1, ("Q", "A")), "answers": []}, "0007": cover(1, ("Q", ""))}
    write_json(tmp_path / "ocr_vqa" / "dataset.json", covers)
    with pytest.raises(ValueError) as error:
        load(tmp_path, "OCRVQA")
    for line in (
        "split that is not 1, 2 or 3: 1 (cover 0005)",
        "other number of questions than of answers: 1 (cover 0006)",
        "empty answer: 1 (cover 0007, question 1)",
        "missing image: 1 (cover 0004, question 1: 0004.png)",
    ):
        assert line in str(error.value)
    assert len(load(tmp_path, "OCRVQA", VQA_MISSING="skip").train_x) == 2


def test_ocr_vqa_takes_one_file_only(tmp_path: Path, covers: dict[str, Any]) -> None:
    write_json(tmp_path / "ocr_vqa" / "covers.json", covers)
    assert len(load(tmp_path, "OCRVQA", VQA_TRAIN="covers.json").test) == 1
    for settings, message in (
        ({"VQA_TEST": "other.json", "VQA_COLUMNS": ("a=b",)}, "DATASET.VQA.TEST, DATASET.VQA.COLUMNS"),
        ({}, "no file .*dataset.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(tmp_path, "OCRVQA", **settings)
    write_json(tmp_path / "ocr_vqa" / "dataset.json", [1])
    with pytest.raises(ValueError, match="expected an object of covers"):
        load(tmp_path, "OCRVQA")


def question(number: int, image: str, answers: list[str] | None = None) -> dict[str, Any]:
    row = {"question_id": number, "image_id": image, "question": f"what says sign {number}?", "image_classes": ["Sign"]}
    return row if answers is None else {**row, "answers": answers}


@pytest.fixture
def text_vqa(tmp_path: Path) -> Path:
    folder = tmp_path / "textvqa"
    write_images(folder / "train_images", ["a1.jpg", "b2.jpg", "c3.jpg"])
    write_images(folder / "test_images", ["d4.jpg"])
    train = [question(1, "a1", ["stop"] * 10)]
    val = [question(2, "b2", ["exit"] * 7 + ["Exit"] * 3), question(3, "c3", ["42"] * 10)]
    for part, rows in (("train", train), ("val", val), ("test", [question(4, "d4")])):
        write_json(folder / f"TextVQA_0.5.1_{part}.json", {"dataset_type": part, "data": rows})
    return tmp_path


def test_text_vqa_is_tested_on_its_validation_part(text_vqa: Path) -> None:
    data = load(text_vqa, "TextVQA")
    assert data.split_kind == "val as test" and len(data.train_x) == 1
    assert facts(data.test) == [
        ("b2.jpg", "what says sign 2?", ["exit"] * 7 + ["Exit"] * 3),
        ("c3.jpg", "what says sign 3?", ["42"] * 10),
    ]
    assert {item.extras["ocr_tokens"] for item in (*data.train_x, *data.test)} == {"[]"}


def test_text_vqa_val_alone_is_enough_to_test(text_vqa: Path) -> None:
    (text_vqa / "textvqa" / "TextVQA_0.5.1_train.json").unlink()
    data = load(text_vqa, "TextVQA")
    assert data.split_kind == "tests only" and len(data.test) == 2


def test_text_vqa_test_questions_are_for_prediction_when_named(text_vqa: Path) -> None:
    data = load(text_vqa, "TextVQA", VQA_TEST="TextVQA_0.5.1_test.json")
    assert facts(data.test) == [("d4.jpg", "what says sign 4?", [])] and data.split_kind == "given"


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_text_vqa_reads_ocr_tokens_beside_the_questions(text_vqa: Path, version: str) -> None:
    rows = [{"image_id": "b2", "ocr_tokens": ["EXIT", "ü"], "ocr_info": []}]
    write_json(text_vqa / "textvqa" / f"TextVQA_Rosetta_OCR_v{version}_val.json", {"data": rows})
    tokens = [json.loads(item.extras["ocr_tokens"]) for item in load(text_vqa, "TextVQA").test]
    assert tokens == [["EXIT", "ü"], []]


def test_text_vqa_files_of_another_form_are_refused(text_vqa: Path) -> None:
    write_json(text_vqa / "textvqa" / "TextVQA_0.5.1_val.json", {"data": [1]})
    with pytest.raises(ValueError, match="TextVQA_0.5.1_val.json: expected an object with a list `data` of objects"):
        load(text_vqa, "TextVQA")
    with pytest.raises(ValueError, match="DATASET.VQA.COLUMNS: expected nothing"):
        load(text_vqa, "TextVQA", VQA_COLUMNS=("question=text",))
    for part in ("train", "val"):
        (text_vqa / "textvqa" / f"TextVQA_0.5.1_{part}.json").unlink()
    with pytest.raises(ValueError, match=re.escape("no TextVQA_0.5.1_train.json or TextVQA_0.5.1_val.json")):
        load(text_vqa, "TextVQA")

"""AQUA in the form in which its authors publish it; the published files themselves, if AQUA_FOLDER names where they are."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from vqa_trees import facts, load, write_images, write_json

PUBLISHED = os.environ.get("AQUA_FOLDER", "")
COUNTS = {  # questions, of them such that need knowledge, pictures; the last two where they were counted
    "train": (69_812, None, None),
    "val": (5_124, 3_617, 1_040),
    "test": (4_912, 3_642, 1_032),
}


def row(image: str, question: str, answer: str, knowledge: Any) -> dict[str, Any]:
    return {"image": image, "question": question, "answer": answer, "need_external_knowledge": knowledge}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "aqua"
    write_images(tmp_path / "SemArt" / "Images", [f"{name}.jpg" for name in "abc"])
    known = row("a.jpg", "who made it", "Goya", True)
    write_json(folder / "train.json", [row("a.jpg", "what stands there", "tree", False), known])
    write_json(folder / "val.json", [row("b.jpg", "what stands there", "people", False)])
    write_json(folder / "test.json", [row("c.jpg", "for whom was it made", "the King's secretary", True)])
    return tmp_path


def test_published_files_are_read_with_the_two_types(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(root, "AQUA")
    assert data.split_kind == "given" and data.classnames == ["knowledge", "visual"]
    assert facts(data.train_x) == [("a.jpg", "what stands there", ["tree"]), ("a.jpg", "who made it", ["Goya"])]
    assert [item.label for item in data.train_x] == [1, 0]
    assert facts(data.test) == [("c.jpg", "for whom was it made", ["the King's secretary"])]
    assert {item.extras["question_type"] for item in data.val} == {"visual"}
    assert "AQUA: train has 2 questions; published are 69,812" in caplog.text
    assert "AQUA: test has 1 questions; published are 4,912" in caplog.text


@pytest.mark.parametrize("value", ["maybe", None, 1])
def test_question_of_neither_type_is_a_fault(root: Path, value: Any) -> None:
    write_json(root / "aqua" / "val.json", [row("b.jpg", "what", "x", value), row("b.jpg", "who", "y", True)])
    reason = "need_external_knowledge that is neither true nor false: 1 (val.json, entry 1)"
    with pytest.raises(ValueError) as error:
        load(root, "AQUA")
    assert reason in str(error.value)
    assert len(load(root, "AQUA", VQA_MISSING="skip").val) == 1


def test_files_without_types_and_other_column_names_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="DATASET.VQA.COLUMNS: expected nothing, the published names are read"):
        load(root, "AQUA", VQA_COLUMNS=("question=text",))
    write_json(root / "aqua" / "val.json", [{"image": "b.jpg", "question": "what", "answer": "x"}])
    with pytest.raises(ValueError, match="val.json has no column for question_type=need_external_knowledge"):
        load(root, "AQUA")


@pytest.mark.skipif(not PUBLISHED, reason="AQUA_FOLDER names no folder with the published files")
def test_published_files_have_the_published_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, parts = tmp_path / "aqua", {}
    folder.mkdir()
    for part in COUNTS:
        source = Path(PUBLISHED, f"{part}.json")
        if source.is_file():
            parts[part] = json.loads(source.read_text("utf-8"))
            (folder / source.name).write_bytes(source.read_bytes())
    assert parts, f"{PUBLISHED} has none of {', '.join(COUNTS)}"
    write_images(folder / "images", sorted({question["image"] for rows in parts.values() for question in rows}))
    data = load(tmp_path, "AQUA", VQA_MISSING="skip")
    assert "published are" not in caplog.text
    for part in parts:
        items = data.train_x if part == "train" else getattr(data, part)
        questions, knowledge, pictures = COUNTS[part]
        if knowledge is not None:
            found = Counter(item.classname for item in items)
            assert (len(items), found["knowledge"], len({item.impath for item in items})) == (questions, knowledge, pictures)

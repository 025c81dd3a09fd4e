"""What users get wrong: boxes, masks, images, cache folders. Each has the documented result, and nothing is lost."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image
from tiny_questions import BOX, Question, TinyQuestions

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection.boxes_file import BoxesWriter, Origin
from trainers.bgobj_llava.detection.detections import from_boxes
from trainers.bgobj_llava.detection.finders import Finder
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Canvas

NAME = "BgObjLLaVA"
P = 16  # patches of the tiny world's LLaVA


def registered(name: str, **changes: Any) -> str:
    """Register a variant of TinyQuestions; returns its name."""
    if name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(name, (TinyQuestions,), {"changes": changes}))
    return name


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def write_side_file(path: Path, images: list[Path]) -> Path:
    with BoxesWriter(path, Origin.of(DetectorOptions(backend="none"), "")) as writer:
        for image in images:
            writer.write(hash_file(image), image.name, (32, 32), from_boxes([BOX]))
    return path


# --- boxes --------------------------------------------------------------------------------------------------------------


def test_missing_boxes_stop_a_run_before_it_trains(make_trainer, tiny_world: Path, tmp_path: Path) -> None:
    training = sorted((tiny_world / "colours" / "train").iterdir())
    file = write_side_file(tmp_path / "boxes.jsonl", training[:6])  # "0.png" to "5.png", as the test images are called
    name = registered("TinyBadBoxless", boxes="")
    trainer = make_trainer(NAME, {"DATASET.NAME": name, ".DET.FILE": str(file)})
    message = r"2 images \(.*6\.png, .*7\.png\): the data set says nothing about objects, and no record in .*DET\.FILE"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert not (tmp_path / "run" / "bgobj_llava").exists() and not (tmp_path / "run" / "adapter").exists()


def test_a_renamed_image_is_known_by_its_bytes(tmp_path: Path) -> None:
    items = []
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png", "e.png")):
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(tmp_path / name)
        items.append(Question({"boxes": ""}, impath=str(tmp_path / name), label=0))
    options = DetectorOptions(file=str(write_side_file(tmp_path / "boxes.jsonl", [tmp_path / "a.png"])))
    shutil.copyfile(tmp_path / "a.png", tmp_path / "renamed.png")
    known = Question({"boxes": ""}, impath=str(tmp_path / "renamed.png"), label=0)
    Finder(options, Canvas(56, 14)).check([items[0], known, Question({"boxes": "[]"}, impath=items[1].impath, label=0)])
    with pytest.raises(ValueError, match=r"^4 images \(.*b\.png, .*c\.png, .*d\.png and 1 more\)"):
        Finder(options, Canvas(56, 14)).check(items + items)


def test_missing_boxes_may_count_as_no_detection(make_trainer, tmp_path: Path) -> None:
    name = registered("TinyBadBoxless", boxes="")
    make_trainer(NAME, {"DATASET.NAME": name, ".DET.MISSING": "no_detection", "OPTIM.MAX_EPOCH": 1}).train()
    assert [(row["n_bg"], row["n_obj"], row["detected"]) for row in rows_of(tmp_path / "run")] == [(0, P, False)] * 6


RULES = {"object_only": (0, P), "bg_only": (P, 0), "baseline": (0, P)}


@pytest.mark.parametrize("boxes", ([], [[200, 200, 300, 300]]), ids=("no boxes", "boxes outside"))
@pytest.mark.parametrize("rule", RULES)
def test_without_detection_the_rule_holds_in_training_and_in_answers(
    rule: str, boxes: list, make_trainer, tmp_path: Path, caplog
) -> None:
    name = registered(f"TinyBadUndetected{len(boxes)}", boxes=json.dumps(boxes))
    changes = {"DATASET.NAME": name, ".MASK.NO_DETECTION": rule, "OPTIM.MAX_EPOCH": 1}
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(NAME, changes)
        trainer.train()
    assert trainer.report.epochs[0]["losses"]["answers"] > 0
    assert {(row["n_bg"], row["n_obj"], row["detected"]) for row in rows_of(tmp_path / "run")} == {(*RULES[rule], False)}
    assert "No object was found for 6 of 6 questions" in caplog.text


def test_parts_of_boxes_outside_the_image_change_nothing(make_trainer, tmp_path: Path) -> None:
    answers = []
    for number, boxes in enumerate(([[-900, 10, 12, 900]], [[0, 10, 12, 32]])):
        name = registered(f"TinyBadPartly{number}", boxes=json.dumps(boxes))
        make_trainer(NAME, {"DATASET.NAME": name}, run=name).test()
        answers.append([(row["answer"], row["n_bg"], row["n_obj"]) for row in rows_of(tmp_path / name)])
    assert answers[0] == answers[1] and answers[0][0][1] > 0


def test_all_object_masks_train_and_answer_without_background(make_trainer, tmp_path: Path, caplog) -> None:
    name = registered("TinyBadCovered", boxes="[[0, 0, 32, 32]]")
    with caplog.at_level(logging.INFO):
        make_trainer(NAME, {"DATASET.NAME": name, "OPTIM.MAX_EPOCH": 1}).train()
    found = {(row["n_bg"], row["n_obj"], row["detected"], row["miss"]) for row in rows_of(tmp_path / "run")}
    assert found == {(0, P, True, "background empty")}
    assert "misses: background empty 6" in caplog.text


# --- images -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_world(make_trainer, tiny_world: Path, tmp_path: Path) -> Path:
    """The tiny world with a test image that is cut off."""
    make_trainer(NAME, run="first")  # writes the LLaVA
    world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    image = world / "colours" / "test" / "3.png"
    image.write_bytes(image.read_bytes()[:300])
    return world


def test_image_that_cannot_be_decoded_stops_a_test_by_name(make_trainer, broken_world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(NAME, {"DATASET.ROOT": str(broken_world)})
    with pytest.raises(ValueError, match=r"3\.png"):
        trainer.train()
    assert (tmp_path / "run" / "adapter" / "last" / "adapter.safetensors").is_file()  # what was learned is there
    assert not (tmp_path / "run" / "predictions.jsonl").exists()


# --- cache folders ------------------------------------------------------------------------------------------------------


def asked_again(make_trainer, cache: Path, run: Path, **changes: Any) -> tuple[list, dict[str, Any]]:
    """Test once more with the cache folder; returns the answers and how many hits there were."""
    settings = {".CACHE.DIR": str(cache), ".CACHE.DISK_GIB": 1.0, ".MASK.DILATE": 0} | changes
    make_trainer(NAME, settings, run=run.name).test()
    rows = rows_of(run)
    return [(row["question_id"], row["answer"]) for row in rows], sum(bool(row["hit"]) for row in rows)


def test_damaged_entries_and_other_weights_cost_hits_and_no_answer(make_trainer, tmp_path: Path, caplog) -> None:
    cache = tmp_path / "cache"
    first, _ = asked_again(make_trainer, cache, tmp_path / "one")
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert len(files) == 6
    again, hits = asked_again(make_trainer, cache, tmp_path / "two")
    assert again == first and hits == 6
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        damaged, hits = asked_again(make_trainer, cache, tmp_path / "three")
    assert f"{files[0].name} cannot be read" in caplog.text
    assert damaged == first and hits == 5
    other = {"MODEL.BACKBONE.PRETRAINED": False, "SEED": 5}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        asked, hits = asked_again(make_trainer, cache, tmp_path / "four", **other)
    assert "none of the 6 entries" in caplog.text and "belongs to this model and its settings" in caplog.text
    assert hits == 0 and len(asked) == 6
    back, hits = asked_again(make_trainer, cache, tmp_path / "five")
    assert back == first and hits == 6

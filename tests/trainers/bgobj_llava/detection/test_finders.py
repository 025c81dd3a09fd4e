"""Boxes of items: records first, then the side file, or a detector that looks before the loader reads."""

from __future__ import annotations

import json
import logging
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_questions import Question

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection import finders
from trainers.bgobj_llava.detection.boxes_file import BoxesWriter, Origin
from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.detection.finders import Finder
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Canvas, open_image

CANVAS = Canvas(56, 7)
OWN, FILED = [[1.0, 1.0, 9.0, 9.0], [20.0, 20.0, 40.0, 30.0]], [[30.0, 30.0, 50.0, 50.0]]


def make_item(folder: Path, boxes: str, name: str = "a.png") -> Question:
    path = folder / name
    if not path.is_file():
        Image.fromarray(np.full((56, 56, 3), 90, dtype=np.uint8)).save(path)
    return Question({"question": "what?", "answers": "[]", "boxes": boxes}, impath=str(path), label=0)


def write_side_file(folder: Path, item: Question, options: DetectorOptions) -> str:
    path = folder / "boxes.jsonl"
    with BoxesWriter(path, Origin.of(options, "")) as writer:
        writer.write(hash_file(item.impath), "a.png", (56, 56), from_boxes(FILED))
    return str(path)


def find(options: DetectorOptions, item: Question, index: int = 0) -> Detections:
    finder = Finder(options, CANVAS)
    return finder(item, CANVAS.place(open_image(item.impath)), index)


def test_boxes_of_the_record_come_before_the_side_file(tmp_path: Path) -> None:
    silent, known = make_item(tmp_path, ""), make_item(tmp_path, json.dumps(OWN))
    file = write_side_file(tmp_path, silent, DetectorOptions(backend="none"))
    options = DetectorOptions(file=file)
    assert find(options, known).boxes.tolist() == OWN
    assert find(options, silent).boxes.tolist() == FILED


def test_known_to_be_empty_is_not_the_same_as_unknown(tmp_path: Path) -> None:
    assert len(find(DetectorOptions(), make_item(tmp_path, "[]"))) == 0
    silent = make_item(tmp_path, "")
    with pytest.raises(ValueError, match=r"a\.png: the data set says nothing about objects, and .*DET\.FILE is empty"):
        find(DetectorOptions(), silent)
    assert len(find(DetectorOptions(missing="no_detection"), silent)) == 0


def test_image_without_a_record_in_the_side_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = write_side_file(tmp_path, make_item(tmp_path, ""), DetectorOptions(backend="none"))
    Image.fromarray(np.zeros((56, 56, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    other = make_item(tmp_path, "", "b.png")
    with pytest.raises(ValueError, match=r"b\.png: .* no record in .*DET\.FILE .*boxes\.jsonl"):
        find(DetectorOptions(file=file), other)


def test_known_boxes_are_filtered_too(tmp_path: Path) -> None:
    item = make_item(tmp_path, json.dumps(OWN))
    assert find(DetectorOptions(min_area=100.0), item).boxes.tolist() == OWN[1:]


def test_random_control_moves_boxes_of_equal_sizes_alike_in_every_run(tmp_path: Path) -> None:
    item, options = make_item(tmp_path, json.dumps(OWN)), DetectorOptions(backend="random")
    first, again, other = (find(options, item, index).boxes for index in (3, 3, 4))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.allclose(first[:, 2:] - first[:, :2], [[8, 8], [20, 10]], atol=1e-4)
    assert not np.allclose(first, OWN)


class Recorder:
    """Finds one box in every image, and remembers how it was asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def detect(self, images: list[Any]) -> list[Detections]:
        self.calls.append(len(images))
        return [from_boxes([[0, 0, 5, 5 + len(self.calls)]]) for _ in images]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(finders, "build_detector", lambda *args, **kwargs: recorder)
    return recorder


def test_detector_looks_once_at_every_image_before_it_is_read(tmp_path: Path, detector: Recorder) -> None:
    items = [make_item(tmp_path, "", f"{number}.png") for number in range(10) for _ in range(2)]
    finder = Finder(DetectorOptions(backend="rtdetr", weights="somewhere"), CANVAS)
    with pytest.raises(RuntimeError, match="rtdetr has not looked at .*0.png"):
        finder(items[0], None, 0)
    finder.prepare(items)
    finder.prepare(items)
    assert detector.calls == [8, 2]
    assert finder(items[0], None, 0).boxes.tolist() == [[0, 0, 5, 6]]
    assert finder(items[-1], None, 19).boxes.tolist() == [[0, 0, 5, 7]]
    in_worker = ForkingPickler.loads(ForkingPickler.dumps(finder))
    assert in_worker(items[0], None, 0).boxes.tolist() == [[0, 0, 5, 6]]


def test_detector_looks_again_when_images_are_new(tmp_path: Path, detector: Recorder) -> None:
    items = [make_item(tmp_path, "", f"{number}.png") for number in range(4)]
    finder = Finder(DetectorOptions(backend="rtdetr", weights="somewhere"), CANVAS)
    finder.prepare(items[:2])
    finder.prepare(items[1:])
    assert detector.calls == [2, 3]
    assert [finder(item, None, 0).boxes[0, 3] for item in items] == [6, 7, 7, 7]
    finder.prepare(items)
    assert detector.calls == [2, 3]


def test_broken_image_does_not_stop_the_others(
    tmp_path: Path, detector: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    items = [make_item(tmp_path, "", name) for name in ("a.png", "b.png")]
    Path(items[0].impath).write_bytes(b"no picture")
    finder = Finder(DetectorOptions(backend="dfine", weights="somewhere"), CANVAS)
    with caplog.at_level(logging.WARNING, "trainers"):
        finder.prepare(items)
    assert "a.png is no image" in caplog.text and detector.calls == [1]
    assert finder(items[1], None, 0).boxes.tolist() == [[0, 0, 5, 6]]
    with pytest.raises(RuntimeError, match="dfine has not looked at .*a.png"):
        finder(items[0], None, 0)


def test_nothing_is_looked_for_without_a_detector(tmp_path: Path, detector: Recorder) -> None:
    item = make_item(tmp_path, json.dumps(OWN))
    finder = Finder(DetectorOptions(backend="none"), CANVAS)
    finder.prepare([item])
    assert len(finder(item, None, 0)) == 0 and detector.calls == []


def test_static_camera_is_compared_frame_by_frame(tmp_path: Path) -> None:
    items = [make_item(tmp_path, "", f"{number}.png") for number in range(3)]
    pixels = np.full((56, 56, 3), 90, dtype=np.uint8)
    pixels[14:28, 7:14] = 250
    Image.fromarray(pixels).save(items[2].impath)
    finder = Finder(DetectorOptions(backend="bgsub"), CANVAS)
    finder.prepare(items)
    found = [finder(item, None, number) for number, item in enumerate(items)]
    assert [len(each) for each in found] == [0, 0, 1]
    assert found[2].boxes.tolist() == [[7, 14, 14, 28]]

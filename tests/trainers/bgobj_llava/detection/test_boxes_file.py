"""The side file: bitwise round trip, known by content, continued after an interruption, one origin only."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection.boxes_file import (
    BoxesFile,
    BoxesWriter,
    Origin,
    decode_mask,
    encode_mask,
)
from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.detection.run import look_at_random, look_with, write_boxes

OPTIONS = DetectorOptions(backend="none", classes=("cat", "-dog"))
ORIGIN = Origin.of(OPTIONS, "abc")


def found(n: int, *, masks: bool = False, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corners = rng.random((n, 2), dtype=np.float32) * 10
    boxes = np.concatenate([corners, corners + 1 + rng.random((n, 2), dtype=np.float32)], axis=1)
    return Detections(
        boxes, rng.random(n, dtype=np.float32), [f"cät {i}" for i in range(n)], rng.random((n, 8, 12)) < 0.5 if masks else None
    )


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


class Counting:
    """A detector whose boxes name the image by its first red value; it may stop after some images."""

    weights_sha256 = "abc"

    def __init__(self, n_allowed: int = 99) -> None:
        self.seen, self.n_allowed = 0, n_allowed

    def detect(self, images):
        if self.seen + len(images) > self.n_allowed:
            raise KeyboardInterrupt
        self.seen += len(images)
        return [from_boxes([(0, 0, 1 + int(image[0, 0, 0]), 1)]) for image in images]


def fill(paths, output, detector, **changes):
    return write_boxes(paths, look_with(detector), output, options=OPTIONS, weights_sha256="abc", **{"batch": 2, **changes})


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_records_come_back_bit_by_bit(tmp_path, images, n, masks):
    written = found(n, masks=masks)
    with BoxesWriter(tmp_path / "boxes.jsonl", ORIGIN) as writer:
        writer.write(hash_file(images[0]), images[0].name, (12, 8), written)
    read = BoxesFile(tmp_path / "boxes.jsonl").find(images[0])
    assert read.boxes.tobytes() == written.boxes.tobytes() and read.boxes.shape == (n, 4) and read.boxes.dtype == np.float32
    assert read.scores.tobytes() == written.scores.tobytes() and read.labels == written.labels
    assert (read.masks is None) == (not masks)
    if masks:
        np.testing.assert_array_equal(read.masks, written.masks)
        assert read.masks.shape == (n, 8, 12) and read.masks.dtype == bool


def test_a_record_holds_the_documented_fields(tmp_path, images):
    with BoxesWriter(tmp_path / "boxes.jsonl", ORIGIN) as writer:
        writer.write(hash_file(images[0]), images[0].name, (12, 8), found(2, masks=True))
    record = json.loads((tmp_path / "boxes.jsonl").read_text("utf-8"))
    assert set(record) == {
        "sha256", "file", "width", "height", "boxes", "scores", "labels", "masks", "backend", "weights_sha256", "settings"
    }  # fmt: skip
    assert (record["width"], record["height"], record["backend"], record["weights_sha256"]) == (12, 8, "none", "abc")
    assert record["settings"]["classes"] == ["cat", "-dog"] and record["settings"]["conf"] == 0.25


def test_an_image_is_known_by_its_bytes_wherever_it_lies(tmp_path, images):
    fill(images[:1], tmp_path / "boxes.jsonl", Counting())
    boxes = BoxesFile(tmp_path / "boxes.jsonl")
    shutil.copy(images[0], tmp_path / "another name.png")
    assert len(boxes.find(tmp_path / "another name.png")) == 1
    assert boxes.find(images[1]) is None and len(boxes) == 1


def test_running_again_detects_only_what_is_new(tmp_path, images):
    output = tmp_path / "boxes.jsonl"
    shutil.copy(images[0], images[0].with_name("twin.png"))
    counts = fill([images[0], images[0].with_name("twin.png"), *images[1:3]], output, Counting())
    assert (counts.written, counts.skipped, counts.boxes, counts.empty) == (3, 1, 3, 0)
    before = output.read_bytes()
    again = Counting()
    counts = fill(images, output, again)
    assert (counts.written, counts.skipped, again.seen) == (2, 3, 2)
    assert output.read_bytes().startswith(before)
    boxes = BoxesFile(output)
    assert [boxes.find(path).boxes[0, 2] for path in images] == [1, 2, 3, 4, 5]


def test_an_interrupted_run_is_continued_and_its_half_line_removed(tmp_path, images, caplog):
    output = tmp_path / "boxes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        fill(images, output, Counting(n_allowed=2))
    whole = output.read_bytes()
    output.write_bytes(whole + whole[: len(whole) // 4])
    assert len(BoxesFile(output)) == 2 and "cut off" in caplog.text
    counts = fill(images, output, Counting())
    assert (counts.written, counts.skipped) == (3, 2) and "unfinished last record" in caplog.text
    assert [len(line) > 10 for line in output.read_text("utf-8").splitlines()] == [True] * 5
    assert len(BoxesFile(output)) == 5


def test_boxes_of_other_settings_are_not_mixed(tmp_path, images):
    fill(images[:1], tmp_path / "boxes.jsonl", Counting())
    with pytest.raises(ValueError, match=r"another origin \(weights_sha256 'abc' -> 'def'; conf 0.25 -> 0.5\)"):
        BoxesWriter(
            tmp_path / "boxes.jsonl", Origin.of(DetectorOptions(backend="none", classes=("cat", "-dog"), conf=0.5), "def")
        )


def test_every_option_that_decides_boxes_is_part_of_their_origin():
    names = {field.name for field in fields(DetectorOptions)}
    elsewhere = {"backend", "weights", "file", "missing"}  # fields of their own, or of the reader
    assert set(Origin.of(OPTIONS, "").settings) == names - elsewhere


def test_files_that_are_no_images_are_listed_and_the_rest_is_done(tmp_path, images):
    images[1].write_bytes(b"no image")
    counts = fill([*images, tmp_path / "missing.png"], tmp_path / "boxes.jsonl", Counting())
    assert counts.written == 4
    assert [path.split("/")[-1] for path in counts.failed] == ["1.png", "missing.png"]
    assert "no image that can be decoded" in counts.failed[images[1].as_posix()]


def test_images_without_objects_are_recorded(tmp_path, images):
    class Blind(Counting):
        def detect(self, images):
            return [from_boxes([]) for _ in images]

    assert fill(images, tmp_path / "boxes.jsonl", Blind()).empty == 5
    assert len(BoxesFile(tmp_path / "boxes.jsonl").find(images[0])) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is no record of scripts/bgobj_detect.py"),
        ("[]", "line 2 is no record"),
        ('{"boxes": []}', "line 2 is no record.*sha256"),
    ],
)
def test_a_broken_line_is_named(tmp_path, images, line, message):
    output = tmp_path / "boxes.jsonl"
    fill(images[:1], output, Counting())
    output.write_text(output.read_text("utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        BoxesFile(output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[5, 5, 1, 1]]}, "line 1: 1 of 1 boxes have x2 <= x1"),
        ({"scores": []}, "line 1: numbers differ: 1 boxes, 0 scores, 1 labels"),
        ({"masks": [{"size": [8, 12], "counts": [5]}]}, "line 1: mask runs sum to 5; expected 8 x 12 = 96"),
        ({"masks": [{"size": [8, 12], "counts": [96]}] * 2}, "line 1: numbers differ: 1 boxes, 1 scores, 1 labels, 2 masks"),
        ({"masks": [{"size": [4, 24], "counts": [96]}]}, r"line 1: a mask of size \[4, 24\]; expected \[8, 12\]"),
    ],
)
def test_a_record_that_cannot_be_is_named_when_asked_for(tmp_path, images, changes, message):
    output = tmp_path / "boxes.jsonl"
    fill(images[:1], output, Counting())
    output.write_text(json.dumps({**json.loads(output.read_text("utf-8")), **changes}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        BoxesFile(output).find(images[0])


def test_a_missing_file_and_another_kind_of_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.jsonl"):
        BoxesFile(tmp_path / "no.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="no text file in UTF-8"):
        BoxesFile(tmp_path / "binary.jsonl")


def test_run_lengths_are_cocos():
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert encode_mask(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert encode_mask(np.ones((2, 2), dtype=bool)) == {"size": [2, 2], "counts": [0, 4]}
    assert encode_mask(np.zeros((2, 2), dtype=bool)) == {"size": [2, 2], "counts": [4]}
    for seed in range(20):
        mask = np.random.default_rng(seed).random((5, 7)) < 0.5
        code = encode_mask(mask)
        np.testing.assert_array_equal(decode_mask(code), mask)
        assert min(code["counts"][1:], default=1) > 0


def test_random_boxes_depend_on_the_images_content_alone(tmp_path, images):
    fill(images[2:], tmp_path / "true.jsonl", Counting())
    options, look = DetectorOptions(backend="random"), look_at_random(BoxesFile(tmp_path / "true.jsonl"))
    for name, order in (("one", images[2:]), ("two", images[:1:-1])):
        write_boxes(order, look, tmp_path / f"{name}.jsonl", options=options, batch=2)
    one, two = (BoxesFile(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    for number, path in enumerate(images[2:], start=2):
        boxes = one.find(path).boxes
        np.testing.assert_array_equal(boxes, two.find(path).boxes)
        np.testing.assert_allclose(boxes[0, 2:] - boxes[0, :2], (1 + number, 1), atol=1e-5)
        assert (boxes >= 0).all() and (boxes <= [12, 8, 12, 8]).all()
    with pytest.raises(ValueError, match="0.png has no record in .*true.jsonl, whose boxes give the sizes"):
        write_boxes(images[:1], look, tmp_path / "one.jsonl", options=options)

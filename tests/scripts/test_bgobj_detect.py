"""The commands around boxes: fill a side file, continue it, and look at the split."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bgobj_detect  # noqa: E402
import bgobj_visualise  # noqa: E402

from trainers.bgobj_llava.detection.boxes_file import BoxesFile  # noqa: E402


@pytest.fixture
def scene(tmp_path) -> Path:
    """A folder with `empty.png`, and `frames/` of it with a square at two places."""
    empty = np.full((80, 120, 3), 90, dtype=np.uint8)
    (tmp_path / "frames").mkdir()
    Image.fromarray(empty).save(tmp_path / "empty.png")
    for name, left in (("a", 20), ("b", 70)):
        frame = empty.copy()
        frame[20:50, left : left + 30] = 220
        Image.fromarray(frame).save(tmp_path / "frames" / f"{name}.png")
    return tmp_path


def detect(scene: Path, *more: str, output: str = "boxes.jsonl"):
    arguments = [str(scene / "frames"), "--output", str(scene / output), *more]
    return bgobj_detect.detect(bgobj_detect.parse_args(arguments))


def bgsub(scene: Path, **changes: str):
    return detect(scene, "--backend", "bgsub", "--reference", str(scene / "empty.png"), **changes)


def test_side_file_is_filled_and_continued(scene):
    assert (bgsub(scene).written, bgsub(scene).skipped) == (2, 2)
    boxes = BoxesFile(scene / "boxes.jsonl")
    for name, left in (("a", 20), ("b", 70)):
        found = boxes.find(scene / "frames" / f"{name}.png")
        np.testing.assert_allclose(found.boxes, [(left, 20, left + 30, 50)], atol=5)
        assert found.masks.shape == (1, 80, 120)
    Image.new("RGB", (120, 80), (90, 90, 90)).save(scene / "frames" / "c.png")
    counts = bgsub(scene)
    assert (counts.written, counts.skipped, counts.empty) == (1, 2, 1)


def run(module, monkeypatch, *arguments: str) -> int | str:
    """Run a command's `main` and return what it exits with."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    return stopped.value.code


def test_the_command_reports_what_it_did(scene, monkeypatch, capsys):
    (scene / "frames" / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(scene)
    assert run(bgobj_detect, monkeypatch, "frames", "--output", "out/boxes.jsonl", "--backend", "none") == 1
    written = capsys.readouterr()
    assert "2 new records, 0 boxes, 0 images known" in written.out and "no objects in 2 of the new ones" in written.out
    assert written.err.startswith("no record for frames/broken.png") and "no image that can be decoded" in written.err
    assert len(BoxesFile(scene / "out" / "boxes.jsonl")) == 2
    (scene / "frames" / "broken.png").unlink()
    assert run(bgobj_detect, monkeypatch, "frames", "--output", "out/boxes.jsonl", "--backend", "none") == 0
    assert "CONF" in run(bgobj_detect, monkeypatch, "frames", "--output", "new.jsonl", "--backend", "none", "--conf", "7")


def test_random_boxes_copy_the_sizes_of_a_side_file(scene):
    bgsub(scene)
    assert detect(scene, "--backend", "random", "--file", str(scene / "boxes.jsonl"), output="random.jsonl").written == 2
    true, moved = (BoxesFile(scene / f"{name}.jsonl").find(scene / "frames" / "a.png").boxes for name in ("boxes", "random"))
    np.testing.assert_allclose(moved[:, 2:] - moved[:, :2], true[:, 2:] - true[:, :2], atol=1e-4)
    assert not np.array_equal(true, moved)
    with pytest.raises(ValueError, match="--backend random needs --file"):
        detect(scene, "--backend", "random", output="another.jsonl")


def test_wrong_options_are_reported_together(scene):
    with pytest.raises(ValueError, match="CONF is 2.0.*IMGSZ is 33.*WEIGHTS is empty"):
        detect(scene, "--backend", "rtdetr", "--conf", "2", "--imgsz", "33")
    assert not (scene / "boxes.jsonl").exists()


def test_every_option_has_a_flag_with_the_same_default():
    args = bgobj_detect.parse_args(["x", "--output", "y", "--backend", "none", "--classes=-person", "--min-area", "4"])
    defaults = bgobj_detect.DetectorOptions()
    flags = {name: getattr(args, name) for name in bgobj_detect.HELP}
    assert flags == {name: getattr(defaults, name) for name in bgobj_detect.HELP} | {"min_area": 4.0}
    assert args.classes == ["-person"]
    assert {*bgobj_detect.HELP, "backend", "classes", "missing"} == {field.name for field in bgobj_detect.fields(defaults)}


def look(scene: Path, monkeypatch, *arguments: str) -> int | str:
    return run(bgobj_visualise, monkeypatch, "--output", str(scene / "views"), *arguments)


def test_views_are_drawn_with_sweep_and_cached_background(scene, monkeypatch, capsys):
    bgsub(scene)
    frames = scene / "frames"
    code = look(
        scene,
        monkeypatch,
        str(frames / "a.png"),
        "--file",
        str(scene / "boxes.jsonl"),
        "--background-of",
        str(frames / "b.png"),
        "--sweep",
    )
    assert code == 0 and "1 objects" in capsys.readouterr().out
    assert sorted(path.name for path in (scene / "views").iterdir()) == ["0000_a.json", "0000_a.png", "0000_a_sweep.png"]
    record = json.loads((scene / "views" / "0000_a.json").read_text("utf-8"))
    assert record["counts"]["cached"] + record["counts"]["encoded"] == 576
    assert not record["cached_from"]["exact"] and record["cached_from"]["object_inside"]
    assert set(record["cached_from"]["object_inside"]) <= set(record["indices"]["raw"])
    assert [step["dilate"] for step in record["sweep"][:5]] == [0, 1, 2, 3, 4]
    assert record["sweep"][1]["objects"] == record["counts"]["objects"]


def test_an_image_reuses_its_own_background(scene, monkeypatch):
    bgsub(scene)
    a = str(scene / "frames" / "a.png")
    assert look(scene, monkeypatch, a, "--file", str(scene / "boxes.jsonl"), "--background-of", a) == 0
    record = json.loads((scene / "views" / "0000_a.json").read_text("utf-8"))
    assert record["cached_from"] == {"exact": True, "object_inside": [], "pixels_differ": []}
    assert record["indices"]["cached"] == record["indices"]["background"]


def test_predictions_are_shown_in_the_asked_order(scene, monkeypatch, capsys):
    rows = [
        {"impath": str(scene / "frames" / f"{name}.png"), "question": "q", "answer": name, "scores": {"accuracy": accuracy}}
        for name, accuracy in (("a", 1.0), ("b", 0.0), ("gone", 1.0))
    ]
    (scene / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    box = ["--box", "20", "20", "50", "50"]
    assert look(scene, monkeypatch, "--predictions", str(scene / "predictions.jsonl"), "--top", "3", *box) == 1
    written = capsys.readouterr()
    assert "gone.png" in written.err
    assert [path.name for path in sorted((scene / "views").glob("*.png"))] == ["0000_b.png", "0001_a.png"]
    assert json.loads((scene / "views" / "0000_b.json").read_text("utf-8"))["answer"] == "b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1", "1", "2", "2"], "expected either images or --predictions"),
        (["frames"], "expected either --file or --box"),
        (["frames", "--box", "1", "1", "2", "2", "--rho", "3"], "MASK.RHO is 3.0"),
        (["nowhere", "--box", "1", "1", "2", "2"], "no such file or folder: nowhere"),
    ],
)
def test_impossible_requests_are_named(scene, monkeypatch, arguments, message):
    monkeypatch.chdir(scene)
    assert message in look(scene, monkeypatch, *arguments)

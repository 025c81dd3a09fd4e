"""YOLO through ultralytics: guarded import, safe reading of weights, exact padding. Most of it needs the extra `yolo`."""

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.bgobj_llava.detection.build import build_detector
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.detection.yolo import import_ultralytics, pad_to_stride
from trainers.bgobj_llava.geometry import Canvas

CANVAS = Canvas(336, 14)
GUARDS = ("YOLO_OFFLINE", "YOLO_AUTOINSTALL", "ULTRALYTICS_SAFE_LOAD", "YOLO_CONFIG_DIR")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in GUARDS:
        monkeypatch.setenv(name, "")  # so that what the detector sets is undone


def test_padding_is_grey_right_and_below_and_nothing_is_scaled():
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    padded = pad_to_stride(image)
    assert padded.shape == (1, 3, 352, 352) and padded.dtype == torch.float32
    np.testing.assert_array_equal((padded[0, :, :336, :336].permute(1, 2, 0) * 255).round().numpy(), image)
    assert (padded[0, :, 336:] * 255).unique().tolist() == [114.0] and (padded[0, :, :, 336:] * 255).unique().tolist() == [
        114.0
    ]
    assert pad_to_stride(np.zeros((64, 32, 3), dtype=np.uint8)).shape == (1, 3, 64, 32)


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    real_import = builtins.__import__

    def without_ultralytics(name, *rest):
        if name.split(".")[0] == "ultralytics":
            raise ModuleNotFoundError("No module named 'ultralytics'", name="ultralytics")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ultralytics)
    (tmp_path / "weights.pt").write_bytes(b"never read")
    options = DetectorOptions(backend="ultralytics", weights=str(tmp_path / "weights.pt"))
    with pytest.raises(ImportError, match=r'BACKEND ultralytics needs ultralytics: pip install -e "\.\[yolo\]"'):
        build_detector(options, CANVAS, work_dir=tmp_path)
    assert [os.environ[name] for name in GUARDS] == ["1", "0", "1", str(tmp_path / "ultralytics")]


@pytest.mark.parametrize("flag", [None, False])
def test_a_version_that_unpickles_is_refused(monkeypatch, tmp_path, flag):
    """Older ones do not know the flag; one that was imported without the guards does not heed it."""
    for name, content in (("ultralytics", ""), ("ultralytics.utils", "" if flag is None else f"SAFE_LOAD = {flag}")):
        module = type(sys)(name)
        exec(content, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match="cannot read weights safely|with unsafe loading"):
        import_ultralytics(tmp_path)


@pytest.fixture(scope="module")
def yolo_weights(tmp_path_factory) -> Path:
    """A random YOLO with named classes, saved by a process of its own."""
    if importlib.util.find_spec("ultralytics") is None:  # importing it here would come before its guards
        pytest.skip("needs the extra yolo")
    path = tmp_path_factory.mktemp("yolo") / "yolov8n.pt"
    code = (
        "import sys; from ultralytics import YOLO; model = YOLO('yolov8n.yaml');"
        "model.model.names = {n: ['person', 'car'][n] if n < 2 else f'c{n}' for n in range(80)}; model.save(sys.argv[1])"
    )
    guards = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(path.parent)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={**os.environ, **guards}, capture_output=True)
    return path


@pytest.mark.parametrize("frame", ["original", "model"])
def test_yolo_returns_the_documented_arrays(yolo_weights, tmp_path, frame):
    options = DetectorOptions(
        backend="ultralytics",
        weights=str(yolo_weights),
        conf=1e-6,
        max_boxes=5,
        frame=frame,
        imgsz=320,
        classes=("person", "car"),
    )
    detector = build_detector(options, CANVAS, work_dir=tmp_path)
    sizes = [(120, 80), (40, 200)]
    images = [np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    found = detector.detect(images)
    for each, size in zip(found, sizes, strict=True):
        assert 0 < len(each) <= 5 and each.boxes.shape == (len(each), 4) and each.boxes.dtype == np.float32
        assert (each.boxes[:, 2:] > each.boxes[:, :2]).all() and (each.boxes <= np.tile(size, 2)).all()
        assert set(each.labels) <= {"person", "car"} and each.masks is None
    np.testing.assert_array_equal(detector.detect(images[1:])[0].boxes, found[1].boxes)  # whatever else is in the batch
    assert len(detector.weights_sha256) == 64
    silent = DetectorOptions(backend="ultralytics", weights=str(yolo_weights), conf=0.9, frame=frame, imgsz=320)
    assert len(build_detector(silent, CANVAS, work_dir=tmp_path).detect(images[:1])[0]) == 0


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_yolo_weights_that_carry_code_are_refused_and_nothing_runs(yolo_weights, tmp_path):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes(yolo_weights.read_bytes()[:100_000])
    for name in ("evil.pt", "cut.pt"):
        options = DetectorOptions(backend="ultralytics", weights=str(tmp_path / name))
        with pytest.raises(ValueError, match=f"{name} is no weight file that can be read safely"):
            build_detector(options, CANVAS, work_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_yolo_names_unknown_classes(yolo_weights, tmp_path):
    options = DetectorOptions(backend="ultralytics", weights=str(yolo_weights), classes=("persn",))
    with pytest.raises(ValueError, match=r"80 classes lack: 'persn' \(perhaps person\)"):
        build_detector(options, CANVAS, work_dir=tmp_path)

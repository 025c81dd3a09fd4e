"""Every backend returns the documented arrays, in original pixels, filtered; missing weights are an error, never a download."""

import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from trainers.bgobj_llava.detection.background_subtraction import connected_groups
from trainers.bgobj_llava.detection.build import build_detector
from trainers.bgobj_llava.detection.detections import Detections, clip_detections, from_boxes, random_like
from trainers.bgobj_llava.detection.options import DetectorOptions, check_classes, filter_detections
from trainers.bgobj_llava.geometry import Canvas, MaskPolicy, split_boxes

CANVAS = Canvas(336, 14)


def photo(width: int = 120, height: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def some(scores=(0.9, 0.5, 0.3), labels=("cat", "dog", "car")) -> Detections:
    boxes = np.array([(0, 0, 10, 10), (5, 5, 30, 30), (50, 50, 52, 52)], dtype=np.float32)
    masks = np.zeros((3, 80, 120), dtype=bool)
    masks[np.arange(3), np.arange(3), 0] = True
    return Detections(boxes, np.array(scores, dtype=np.float32), list(labels), masks)


def check_arrays(found: Detections, size: tuple[int, int]) -> None:
    n = len(found.labels)
    assert isinstance(found, Detections) and found.boxes.shape == (n, 4) and found.scores.shape == (n,)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert all(isinstance(label, str) for label in found.labels)
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes >= 0).all() and (found.boxes <= np.tile(size, 2)).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if found.masks is not None:
        assert found.masks.shape == (n, size[1], size[0]) and found.masks.dtype == bool


@pytest.fixture
def no_network(monkeypatch):
    """Record any attempt to connect or to look up a name, and refuse it."""
    attempts = []

    def refuse(*where, **_):
        attempts.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture(scope="module")
def detr_folders(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_detectors import save_detector

    folder = tmp_path_factory.mktemp("detectors")
    return {backend: save_detector(folder / backend, backend) for backend in ("rtdetr", "dfine")}


@pytest.mark.parametrize("backend", ["rtdetr", "dfine"])
@pytest.mark.parametrize("frame", ["original", "model"])
def test_transformer_detectors_return_the_documented_arrays(detr_folders, no_network, backend, frame):
    options = DetectorOptions(backend=backend, weights=str(detr_folders[backend]), conf=0.3, imgsz=64, frame=frame)
    detector = build_detector(options, CANVAS)
    images = [photo(), photo(100, 160, seed=1)]
    found = detector.detect(images)
    assert all(len(each) for each in found)
    for each, image in zip(found, images, strict=True):
        check_arrays(each, image.shape[1::-1])
        assert set(each.labels) <= {"cat", "dog", "car"} and each.masks is None
    alone = detector.detect(images[1:])[0]
    np.testing.assert_allclose(alone.boxes, found[1].boxes, atol=1e-3)
    assert len(detector.weights_sha256) == 64 and no_network == []


def test_transformer_detectors_may_find_nothing(detr_folders):
    options = DetectorOptions(backend="rtdetr", weights=str(detr_folders["rtdetr"]), conf=1.0, imgsz=64)
    detector = build_detector(options, CANVAS)
    check_arrays(detector.detect([photo()])[0], (120, 80))
    assert len(detector.detect([photo()])[0]) == 0 and detector.detect([]) == []


def test_the_detector_sees_the_canvas_in_the_models_frame(detr_folders):
    """What it finds on the canvas comes back scaled and shifted."""
    options = {"backend": "rtdetr", "weights": str(detr_folders["rtdetr"]), "conf": 0.3, "imgsz": 64}
    image = photo(200, 100)
    placed = CANVAS.place(Image.fromarray(image))
    on_canvas = build_detector(DetectorOptions(**options), CANVAS).detect([placed.pixels])[0]
    back = build_detector(DetectorOptions(**options, frame="model"), CANVAS).detect([image])[0]
    expected = clip_detections(
        Detections(placed.to_original(on_canvas.boxes).astype(np.float32), on_canvas.scores, on_canvas.labels), (200, 100)
    )
    assert len(back)
    np.testing.assert_allclose(back.boxes, expected.boxes, atol=1e-4)


def test_another_kind_of_model_is_refused(detr_folders):
    options = DetectorOptions(backend="dfine", weights=str(detr_folders["rtdetr"]))
    with pytest.raises(ValueError, match="type rt_detr; TRAINER.BGOBJLLAVA.DET.BACKEND dfine expects d_fine"):
        build_detector(options, CANVAS)


def test_unknown_classes_are_named_with_near_ones(detr_folders):
    options = DetectorOptions(backend="rtdetr", weights=str(detr_folders["rtdetr"]), classes=("catt", "-dog"))
    with pytest.raises(ValueError, match=r"CLASSES has names that this detector's 3 classes lack: 'catt' \(perhaps cat\)"):
        build_detector(options, CANVAS)


@pytest.mark.parametrize("weights", ["nowhere/at/all", "./nowhere", "someone/never-downloaded-detector"])
def test_missing_weights_raise_without_a_connection_attempt(weights, no_network, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for backend in ("rtdetr", "dfine"):
        with pytest.raises(FileNotFoundError, match=f"DET.WEIGHTS is '{weights}'"):
            build_detector(DetectorOptions(backend=backend, weights=weights), CANVAS)
    assert no_network == []


def test_a_cached_copy_serves_offline(detr_folders, tmp_path, no_network, monkeypatch):
    repository = tmp_path / "models--someone--detector"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    shutil.copytree(detr_folders["rtdetr"], repository / "snapshots" / "abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    options = DetectorOptions(backend="rtdetr", weights="someone/detector", imgsz=64)
    assert len(build_detector(options, CANVAS).weights_sha256) == 64 and no_network == []


def test_an_incomplete_folder_raises_without_a_connection_attempt(detr_folders, tmp_path, no_network):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((detr_folders["rtdetr"] / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="the folder is incomplete.*safetensors"):
        build_detector(DetectorOptions(backend="rtdetr", weights=str(tmp_path)), CANVAS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="the folder is incomplete"):
        build_detector(DetectorOptions(backend="rtdetr", weights=str(tmp_path / "empty")), CANVAS)
    assert no_network == []


def moving_square(size: tuple[int, int], corner: tuple[int, int], side: int) -> np.ndarray:
    frame = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    frame[corner[1] : corner[1] + side, corner[0] : corner[0] + side] = 200
    return frame


@pytest.mark.parametrize("size", [(336, 336), (640, 480), (96, 96)])
def test_background_subtraction_finds_the_patches_that_differ(tmp_path, size):
    empty = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    Image.fromarray(empty).save(tmp_path / "empty.png")
    detector = build_detector(DetectorOptions(backend="bgsub", reference=str(tmp_path / "empty.png"), bgsub_tau=20.0), CANVAS)
    assert len(detector.detect([empty])[0]) == 0
    frame = moving_square(size, (size[0] // 2, size[1] // 2), size[0] // 6)
    frame[: size[1] // 12, : size[0] // 12] = 255
    found = detector.detect([frame])[0]
    check_arrays(found, size)
    assert len(found) == 2 and found.masks is not None and found.labels == ["change", "change"]
    placed, before = CANVAS.place(Image.fromarray(frame)), CANVAS.place(Image.fromarray(empty))
    differences = np.abs(placed.pixels.astype(float) - before.pixels).reshape(24, 14, 24, 14, 3).mean(axis=(1, 3, 4))
    split = split_boxes(found.boxes, placed, CANVAS, MaskPolicy(dilate=0), found.scores, found.masks)
    np.testing.assert_array_equal(split.objects, (differences > 20).reshape(-1))


def test_background_subtraction_without_reference_uses_the_median_of_the_last_frames():
    detector = build_detector(DetectorOptions(backend="bgsub", bgsub_frames=3), CANVAS)
    frames = [moving_square((336, 336), (28 * step, 140), 28) for step in range(6)]
    found = detector.detect(frames)
    assert len(found[0]) == 0  # nothing to compare it with
    assert all(len(each) for each in found[1:])
    np.testing.assert_array_equal(found[5].boxes, [(140, 140, 168, 168)])  # three different frames leave the empty scene
    streamed = build_detector(DetectorOptions(backend="bgsub", bgsub_frames=3), CANVAS)
    one_by_one = [streamed.detect([frame])[0] for frame in frames]
    for together, alone in zip(found, one_by_one, strict=True):
        np.testing.assert_array_equal(together.boxes, alone.boxes)


def test_background_subtraction_threshold_is_in_grey_levels():
    dark, light = (np.full((336, 336, 3), level, dtype=np.uint8) for level in (100, 110))
    for tau, n_found in ((9.9, 1), (10.0, 0)):
        detector = build_detector(DetectorOptions(backend="bgsub", bgsub_tau=tau), CANVAS)
        assert len(detector.detect([dark, light])[1]) == n_found


def test_background_subtraction_loses_nothing_on_an_image_coarser_than_the_patches():
    detector = build_detector(DetectorOptions(backend="bgsub", bgsub_tau=30.0), CANVAS)
    empty = np.full((15, 20, 3), 90, dtype=np.uint8)  # a pixel is wider than a patch
    frame = empty.copy()
    frame[7, 9] = 255
    found = detector.detect([empty, frame])[1]
    check_arrays(found, (20, 15))
    placed, before = CANVAS.place(Image.fromarray(frame)), CANVAS.place(Image.fromarray(empty))
    differences = np.abs(placed.pixels.astype(float) - before.pixels).reshape(24, 14, 24, 14, 3).mean(axis=(1, 3, 4))
    split = split_boxes(found.boxes, placed, CANVAS, MaskPolicy(dilate=0), found.scores, found.masks)
    assert (differences > 30).any() and split.objects.reshape(24, 24)[differences > 30].all()


def test_groups_touch_by_edge_or_corner():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    groups = connected_groups(mask)
    assert [np.argwhere(group).tolist() for group in groups] == [[[0, 0], [1, 1]], [[0, 3], [1, 3]], [[3, 0]]]


def test_none_finds_nothing():
    found = build_detector(DetectorOptions(backend="none"), CANVAS).detect([photo(), photo(10, 10)])
    assert [len(each) for each in found] == [0, 0]
    check_arrays(found[0], (120, 80))


def test_random_keeps_sizes_and_stays_inside():
    found = some()
    moved = [random_like(found, (120, 80), np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for each in moved:
        check_arrays(each, (120, 80))
        np.testing.assert_allclose(each.boxes[:, 2:] - each.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2], atol=1e-4)
        assert each.masks is None and each.labels == found.labels
    np.testing.assert_array_equal(moved[0].boxes, moved[1].boxes)
    assert not np.array_equal(moved[0].boxes, moved[2].boxes)
    assert len(random_like(from_boxes([]), (120, 80), np.random.default_rng(0))) == 0
    everything = random_like(from_boxes([(0, 0, 120, 80)]), (120, 80), np.random.default_rng(0))
    np.testing.assert_array_equal(everything.boxes, [(0, 0, 120, 80)])


def test_filters_by_score_class_area_and_number():
    def left(found=None, **options):
        kept = filter_detections(found or some(), DetectorOptions(**{"conf": 0.0, **options}))
        np.testing.assert_array_equal(
            kept.masks.argmax(axis=1)[:, 0], [["cat", "dog", "car"].index(name) for name in kept.labels]
        )
        return kept.labels

    assert left() == ["cat", "dog", "car"]
    assert left(conf=0.5) == ["cat", "dog"]
    assert left(classes=("dog", "car")) == ["dog", "car"]
    assert left(classes=("-dog",)) == ["cat", "car"]
    assert left(classes=("dog", "car", "-dog")) == ["car"]
    assert left(min_area=100.0) == ["cat", "dog"]
    assert left(max_boxes=2, found=some(scores=(0.1, 0.2, 0.9))) == ["dog", "car"]
    assert left(conf=0.95) == []


def test_classes_of_boxes_without_names_are_an_error():
    with pytest.raises(ValueError, match=r"CLASSES is \('cat',\), but these boxes have no class names; expected \(\)"):
        filter_detections(from_boxes([(0, 0, 1, 1)]), DetectorOptions(classes=("cat",)))
    assert len(filter_detections(from_boxes([]), DetectorOptions(classes=("cat",)))) == 0
    check_classes(("cat", "-dog"), ["cat", "dog"])


def test_boxes_are_clipped_and_those_outside_dropped():
    boxes = np.array([(-5, -5, 10, 10), (100, 70, 500, 500), (130, 10, 140, 20), (np.nan, 0, 5, 5)], dtype=np.float32)
    clipped = clip_detections(Detections(boxes, np.ones(4, np.float32), list("abcd")), (120, 80))
    assert clipped.labels == ["a", "b", "d"]
    np.testing.assert_array_equal(clipped.boxes[:2], [(0, 0, 10, 10), (100, 70, 120, 80)])


def test_known_boxes_are_checked():
    found = from_boxes([(1, 2, 3, 4)])
    check_arrays(found, (10, 10))
    assert found.scores.tolist() == [1.0] and found.labels == [""]
    with pytest.raises(ValueError, match="a.jpg: 1 of 1 boxes"):
        from_boxes([(3, 2, 1, 4)], "a.jpg")


def test_options_list_every_problem():
    assert DetectorOptions().problems() == []
    wrong = DetectorOptions(
        backend="yolo", file="", frame="canvas", missing="skip", conf=1.5, iou=0.0, imgsz=600, max_boxes=0, min_area=-1.0,
        bgsub_tau=300.0, bgsub_frames=0,
    )  # fmt: skip
    found = wrong.problems()
    assert len(found) == 10
    assert found[5] == "TRAINER.BGOBJLLAVA.DET.IMGSZ is 600; expected a multiple of 32 px"
    with pytest.raises(ValueError, match="BACKEND is 'yolo'.*FRAME is 'canvas'.*BGSUB_FRAMES is 0"):
        build_detector(wrong, CANVAS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "rtdetr"}, "WEIGHTS is empty; rtdetr expects a folder or a model hub id"),
        ({"backend": "ultralytics", "weights": "yolov8n.pt"}, "WEIGHTS is 'yolov8n.pt'; ultralytics expects an existing local"),
        (
            {"backend": "precomputed", "file": "no.jsonl"},
            "FILE is 'no.jsonl'; expected a file written by scripts/bgobj_detect.py",
        ),
        ({"backend": "bgsub", "reference": "no.png"}, "REFERENCE is 'no.png'; expected an image file"),
        ({"backend": "precomputed"}, "BACKEND precomputed looks boxes up; a detector is one of rtdetr, dfine, bgsub"),
    ],
)
def test_missing_files_and_backends_without_detector_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_detector(DetectorOptions(**options), CANVAS)

"""What stands between a backend and its user: the frame it looks at, clipping, filters."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.bgobj_llava.detection import build
from trainers.bgobj_llava.detection.build import build_detector
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Canvas

CANVAS = Canvas(56, 14)
IMAGE = np.zeros((28, 112, 3), dtype=np.uint8)  # half a model pixel per pixel, 42 px of padding above and below


class Fixed:
    """Finds the same in every image, and remembers what it was shown."""

    weights_sha256 = "abc"

    def __init__(self, boxes: list, masks: np.ndarray | None = None) -> None:
        self.found = Detections(
            np.array(boxes, dtype=np.float32), np.full(len(boxes), 0.5, dtype=np.float32), ["thing"] * len(boxes), masks
        )
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        self.shapes += [image.shape for image in images]
        return [self.found for _ in images]


def look(monkeypatch: pytest.MonkeyPatch, backend: Fixed, **options: object) -> Detections:
    monkeypatch.setattr(build, "_build_backend", lambda *args: backend)
    options = {"backend": "rtdetr", "weights": "somewhere"} | options
    return build_detector(DetectorOptions(**options), CANVAS).detect([IMAGE])[0]


def test_boxes_are_clipped_to_width_and_height(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, Fixed([[-5, 10, 130, 40], [100, 2, 120, 20]]))
    assert found.boxes.tolist() == [[0, 10, 112, 28], [100, 2, 112, 20]]


def test_filters_come_after_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Fixed([[100, 0, 140, 10], [0, 0, 20, 10]])
    assert look(monkeypatch, backend, min_area=150.0).boxes.tolist() == [[0, 0, 20, 10]]


def test_boxes_and_masks_of_the_models_frame_come_back_in_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((1, 56, 56), dtype=bool)
    masks[0, 21:28, 28:42] = True
    backend = Fixed([[28, 21, 42, 28]], masks)
    found = look(monkeypatch, backend, frame="model")
    assert backend.shapes == [(56, 56, 3)] and found.boxes.tolist() == [[56, 0, 84, 14]]
    rows, columns = np.nonzero(found.masks[0])
    assert found.masks.shape == (1, 28, 112) and len(rows) == 14 * 28
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 13, 56, 83)


def test_the_original_frame_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Fixed([[0, 0, 5, 5]])
    look(monkeypatch, backend)
    assert backend.shapes == [IMAGE.shape]


def test_background_subtraction_makes_its_own_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Fixed([[0, 0, 5, 5]])
    monkeypatch.setattr(build, "_build_backend", lambda *args: backend)
    detector = build_detector(DetectorOptions(backend="bgsub", frame="model"), CANVAS)
    assert detector.detect([IMAGE])[0].boxes.tolist() == [[0, 0, 5, 5]] and backend.shapes == [IMAGE.shape]

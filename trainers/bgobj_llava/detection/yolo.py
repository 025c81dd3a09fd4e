"""YOLO through ultralytics (extra `yolo`, AGPL-3.0 code and weights): a local weight file, no network, no unpickling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.detection.options import NODE, STRIDE_PX, DetectorOptions, check_classes, split_classes

PADDING_GREY = 114 / 255  # what YOLO models saw around images in training
INSTALL = 'pip install -e ".[yolo]" (ultralytics-opencv-headless, AGPL-3.0)'


def import_ultralytics(settings_dir: Path) -> Any:
    """Import ultralytics so that it neither connects, nor installs, nor unpickles, and keeps its settings in the given folder.

    Raises:
        ImportError: If it is missing, or too old to read weights safely.
    """
    settings_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        YOLO_OFFLINE="1", YOLO_AUTOINSTALL="0", ULTRALYTICS_SAFE_LOAD="1", YOLO_CONFIG_DIR=str(settings_dir.resolve())
    )
    try:
        import ultralytics
        from ultralytics.utils import SAFE_LOAD
    except ModuleNotFoundError as error:
        raise ImportError(f"{NODE}.BACKEND ultralytics needs {error.name}: {INSTALL}") from error
    except ImportError as error:
        raise ImportError(f"this ultralytics cannot read weights safely ({error}); expected a newer one: {INSTALL}") from error
    if not SAFE_LOAD:
        raise ImportError("ultralytics was imported before this detector, with unsafe loading; set ULTRALYTICS_SAFE_LOAD=1")
    return ultralytics


class YoloDetector:
    """A YOLO detection or segmentation model.

    Args:
        options: `weights`, `frame`, `conf`, `iou`, `imgsz`, `max_boxes` and `classes` are read.
        device: Where it computes.
        settings_dir: Folder for the library's settings.
    Raises:
        FileNotFoundError: If there is no such weight file; the library would download one.
        ImportError: See `import_ultralytics`.
        ValueError: If the file is damaged, holds more than a model, or lacks an asked-for class.
    """

    def __init__(self, options: DetectorOptions, *, device: str, settings_dir: Path) -> None:
        # An absolute path: a bare name is one that the library may replace by a download.
        path = Path(options.weights).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"{NODE}.WEIGHTS is {options.weights!r}; ultralytics expects an existing local weight file")
        ultralytics = import_ultralytics(settings_dir)
        try:
            self.model = ultralytics.YOLO(str(path), verbose=False)
        except (TypeError, RuntimeError, OSError, AttributeError) as error:
            raise ValueError(f"{NODE}.WEIGHTS {options.weights} is no weight file that can be read safely: {error}") from error
        self.weights_sha256 = hash_file(path)
        self.names: dict[int, str] = dict(self.model.names)
        check_classes(options.classes, list(self.names.values()))
        self.in_model_frame = options.frame == "model"
        self.arguments = {
            "conf": options.conf, "iou": options.iou, "max_det": options.max_boxes, "classes": self._numbers(options.classes),
            "device": device, "retina_masks": True, "verbose": False, "save": False,
        }  # fmt: skip
        self.imgsz = options.imgsz

    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Find objects in RGB images (h, w, 3); in the model's frame these are canvases and keep their scale."""
        return [self._convert(self._predict(image), image.shape[:2]) for image in images]

    def _predict(self, image: NDArray[np.uint8]) -> Any:
        # One by one: how a batch is padded depends on which sizes meet in it.
        if self.in_model_frame:
            return self.model.predict(pad_to_stride(image), **self.arguments)[0]
        return self.model.predict(np.ascontiguousarray(image[..., ::-1]), imgsz=self.imgsz, **self.arguments)[0]

    def _convert(self, found: Any, size: tuple[int, int]) -> Detections:
        boxes = found.boxes
        if boxes is None:
            raise ValueError(f"{NODE}.WEIGHTS gives no boxes; expected a detection or segmentation model")
        labels = [self.names[int(number)] for number in boxes.cls.tolist()]
        masks = None
        if found.masks is not None and len(boxes):
            masks = found.masks.data.cpu().numpy()[:, : size[0], : size[1]] > 0.5
        corners = boxes.xyxy.float().cpu().numpy().reshape(-1, 4)
        return Detections(corners, boxes.conf.float().cpu().numpy().reshape(-1), labels, masks)

    def _numbers(self, classes: tuple[str, ...]) -> list[int] | None:
        """Class numbers to ask for, so that others do not use up `max_det`; None = all."""
        allowed, denied = split_classes(classes)
        if not classes:
            return None
        return [number for number, name in self.names.items() if (not allowed or name in allowed) and name not in denied]


def pad_to_stride(image: NDArray[np.uint8]) -> torch.Tensor:
    """Add grey right and below up to the stride; a tensor is taken as it is, an array would be scaled up.

    Args:
        image: RGB, (h, w, 3).
    Returns:
        (1, 3, H, W), float32, [0, 1]; H and W the next multiples of the stride.
    """
    height, width = image.shape[:2]
    padded = torch.full((1, 3, height + -height % STRIDE_PX, width + -width % STRIDE_PX), PADDING_GREY)
    padded[0, :, :height, :width] = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) / 255
    return padded

"""RT-DETR and D-FINE through transformers: detectors with an Apache-2.0 licence, from a local folder or a model hub.

RT-DETR: https://arxiv.org/abs/2304.08069, D-FINE: https://arxiv.org/abs/2410.13842. Weights are read from safetensors only.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from numpy.typing import NDArray
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import cached_file

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.detection.options import NODE, DetectorOptions, check_classes

MODEL_TYPES = {"rtdetr": ("rt_detr", "rt_detr_v2"), "dfine": ("d_fine",)}
WEIGHTS_FILE = "model.safetensors"
_TRUE = ("1", "on", "yes", "true")


class DetrDetector:
    """A transformer detector; it needs no suppression of double boxes.

    Args:
        options: `weights`, `conf`, `imgsz`, `classes` and the backend are read.
        device: Where it computes.
    Raises:
        FileNotFoundError: If the folder is incomplete, or the name is no folder and cannot be had from the hub or its cache.
        ValueError: If the model is of another kind, or lacks an asked-for class.
    """

    def __init__(self, options: DetectorOptions, *, device: str = "cpu") -> None:
        self.conf, self.device = options.conf, device
        load = partial(_load, weights=options.weights, source=resolve_weights(options.weights))
        config = load(AutoConfig.from_pretrained)
        expected = MODEL_TYPES[options.backend]
        if config.model_type not in expected:
            raise ValueError(
                f"{NODE}.WEIGHTS {options.weights} holds a model of type {config.model_type}; "
                f"{NODE}.BACKEND {options.backend} expects {' or '.join(expected)}"
            )
        size = {"height": options.imgsz, "width": options.imgsz}
        self.processor = load(AutoImageProcessor.from_pretrained, size=size)
        model = load(AutoModelForObjectDetection.from_pretrained, use_safetensors=True)
        self.model = model.eval().requires_grad_(False).to(device)
        self.names: dict[int, str] = self.model.config.id2label
        check_classes(options.classes, list(self.names.values()))
        self.weights_sha256 = hash_file(load(cached_file, filename=WEIGHTS_FILE))

    @torch.inference_mode()
    def detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        """Find objects in RGB images (h, w, 3) of any sizes."""
        if not images:
            return []
        inputs = self.processor(images=images, input_data_format="channels_last", return_tensors="pt").to(self.device)
        outputs = self.model(pixel_values=inputs["pixel_values"])
        found = self.processor.post_process_object_detection(
            outputs,
            threshold=self.conf,
            target_sizes=[image.shape[:2] for image in images],
            use_focal_loss=self.model.config.use_focal_loss,
        )
        return [self._convert(each) for each in found]

    def _convert(self, found: dict[str, torch.Tensor]) -> Detections:
        labels = [self.names[number] for number in found["labels"].tolist()]
        return Detections(found["boxes"].float().cpu().numpy().reshape(-1, 4), found["scores"].float().cpu().numpy(), labels)


def is_offline() -> bool:
    """Whether the hub must not be asked (`HF_HUB_OFFLINE`)."""
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def resolve_weights(weights: str) -> str:
    """Return the folder to read, or the hub id to ask for.

    Offline, the cached copy of a hub id is a folder like any other, and the hub's client is left alone.

    Raises:
        FileNotFoundError: If there is neither folder nor copy (names the key).
    """
    if Path(weights).is_dir():
        return weights
    if Path(weights).is_absolute() or weights.startswith(".") or weights.count("/") > 1:
        raise FileNotFoundError(f"{NODE}.WEIGHTS is {weights!r}: there is no such folder")
    if not is_offline():
        return weights
    config = try_to_load_from_cache(weights, "config.json")
    if not isinstance(config, str):
        raise FileNotFoundError(f"{NODE}.WEIGHTS is {weights!r}: no such folder, and offline the hub's cache has no copy")
    return str(Path(config).parent)


def _load(load: Any, weights: str, source: str, **arguments: Any) -> Any:
    """Call a `from_pretrained`-like function; a failure names the key and what was asked for."""
    is_folder = Path(source).is_dir()
    try:
        return load(source, local_files_only=is_folder, **arguments)
    except (OSError, ValueError) as error:
        reason = "the folder is incomplete" if is_folder else "no such folder, and the hub has none that can be loaded"
        detail = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{NODE}.WEIGHTS is {weights!r}: {reason} ({detail})") from error

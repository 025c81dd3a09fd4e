"""Confidences that mean what they say: one temperature, fitted on labelled validation images of a supervised run.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The temperature changes no label and no learned distribution.
It is stored as calibration.json in the run folder, together with the hash of the weights that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_ext.files import replacing
from clip_ext.label_metrics import compute_calibration_error
from trainers.prediction.run import TrainedRun
from trainers.run_facts import hash_data, splits_of

logger = logging.getLogger(__name__)

FILE_NAME = "calibration.json"
RANGE = (0.01, 100.0)  # of a temperature
BISECTIONS = 60  # of the range, until it is as narrow as a double can be


@dataclass(frozen=True)
class Fitted:
    """A fitted temperature and what it does on the images that it was fitted on.

    Attributes:
        temperature: Logits are divided by it before the softmax.
        images: Number of validation images.
        nll, nll_before: Mean negative log-likelihood of their labels, nats; before: at the temperature of training.
        ece, ece_before: Expected calibration error over 15 bins, in [0, 1].
    """

    temperature: float
    images: int
    nll: float
    nll_before: float
    ece: float
    ece_before: float

    def __str__(self) -> str:
        return (
            f"temperature {self.temperature:.4g} from {self.images} validation images, NLL {self.nll_before:.4f} -> "
            f"{self.nll:.4f}, ECE {100 * self.ece_before:.1f}% -> {100 * self.ece:.1f}% on them"
        )


def fit_temperature(run: TrainedRun, trainer: Any) -> Fitted:
    """Fit the temperature on the validation split.

    Args:
        run: From `read_run`.
        trainer: Loaded with the run's data.
    Raises:
        ValueError: If the run is label-free, its data are not those of training, there is no labelled validation split, or that
            split does not determine a temperature.
    """
    if getattr(trainer, "label_free", True):
        raise ValueError(f"{run.cfg.TRAINER.NAME} has not learned from labels and must not read them; expected MODE supervised")
    data = trainer.dm.dataset
    if run.data_hash != hash_data(splits_of(data)):
        raise ValueError(f"the data of {run.cfg.DATASET.NAME} are not those of {run.path} (data.hash in run.json)")
    if not data.val or any(item.label < 0 for item in data.val):
        raise ValueError(f"{run.cfg.DATASET.NAME} has no labelled val split to fit a temperature on")
    logits, labels, before = _collect(trainer)
    temperature = minimise_nll(logits, labels)
    (nll, ece), (nll_before, ece_before) = (_quality(logits / t, labels) for t in (temperature, before))
    return Fitted(temperature, len(labels), nll, nll_before, ece, ece_before)


@torch.no_grad()
def _collect(trainer: Any) -> tuple[Tensor, Tensor, float]:
    """Return logits (N, C) and labels (N,) of the validation split, on the CPU, and the temperature of training."""
    logits, labels, temperature = [], [], 1.0
    for batch in trainer.val_loader:
        images, target = trainer.parse_batch_test(batch)
        scores = trainer.model_inference(images)
        temperature = getattr(scores, "facts", {}).get("temperature", 1.0)
        logits.append(scores.as_subclass(Tensor).double().cpu())
        labels.append(target.as_subclass(Tensor).cpu())
    return torch.cat(logits), torch.cat(labels), temperature


def minimise_nll(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimises the cross-entropy of softmax(logits / T), by bisection: it is convex in 1 / T.

    Args:
        logits: (N, C).
        labels: (N,), int64.
    Raises:
        ValueError: If the minimum lies outside `RANGE`: all images are right, or the logits say nothing about them.
    """
    logits = logits.double()
    of_label = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(temperature: float) -> float:
        """Derivative by 1 / T."""
        return ((logits / temperature).softmax(dim=1).mul(logits).sum(dim=1) - of_label).mean().item()

    low, high = RANGE
    if slope(low) <= 0 or slope(high) >= 0:
        raise ValueError(
            f"the {len(labels)} validation images do not determine a temperature in {RANGE}: all are classified correctly, "
            "or the logits say nothing about their labels"
        )
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def _quality(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return (NLL, ECE) of softmax(logits)."""
    return F.cross_entropy(logits, labels).item(), compute_calibration_error(logits.softmax(dim=-1), labels)


def write_calibration(run: TrainedRun, trainer: Any, checkpoint: str, fitted: Fitted) -> Path:
    """Store the fit in the run folder; returns the file."""
    path = run.path / FILE_NAME
    content = asdict(fitted) | {"split": "val", "checkpoint": checkpoint, "weights": hash_weights(run, trainer, checkpoint)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return path


def read_temperature(run: TrainedRun, trainer: Any, checkpoint: str | None) -> float | None:
    """Return the stored temperature, or None if there is none for these weights.

    Raises:
        ValueError: If the file is not readable.
    """
    path = run.path / FILE_NAME
    if not path.is_file() or checkpoint is None:
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        temperature, weights = float(stored["temperature"]), stored["weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable ({error}); remove it, or run --calibrate again") from error
    if weights != hash_weights(run, trainer, checkpoint):
        logger.warning("Note: %s belongs to other weights (%s) and is not used", path, stored.get("checkpoint"))
        return None
    return temperature


def hash_weights(run: TrainedRun, trainer: Any, checkpoint: str) -> str:
    """Return the SHA-256 over the checkpoint files of all registered models, hexadecimal."""
    digest = hashlib.sha256()
    for name in trainer.get_model_names():
        digest.update((run.path / name / checkpoint).read_bytes())
    return digest.hexdigest()

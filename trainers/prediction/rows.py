"""Predictions: what a trained model says about images, as one plain dict per image.

Any trainer may define `predict_rows(batch) -> list[dict]`: one dict per image of a test batch, in its order, with the same keys
every time and values that JSON knows. Without it the trainer is a classifier, and `ClassRows` speaks for it. A trainer may also
define `prediction_facts() -> dict` for what holds for all images alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dassl.data.datasets import Datum
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clip_ext.label_metrics import find_polarities
from trainers.prediction.run import TrainedRun

POLARITY = {1: "positive", -1: "negative", 0: None}
DIGITS = 6  # of a probability


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, by position, and why."""

    index: int
    reason: str


class ReadableRows(Dataset):
    """A data set whose unreadable rows are `Unreadable` instead of the end of the run.

    Args:
        rows: Dassl's wrapper around items.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any] | Unreadable:
        try:
            return self.rows[index]
        except Exception as error:  # image decoders raise whatever they like; the reason goes into the row
            return Unreadable(index, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class ReadableBatch:
    """Collate function: readable rows become a batch (None if there is none), the others a list."""

    collate: Callable[[list], dict]

    def __call__(self, rows: Sequence[dict[str, Any] | Unreadable]) -> tuple[dict | None, list[Unreadable]]:
        readable = [row for row in rows if not isinstance(row, Unreadable)]
        return self.collate(readable) if readable else None, [row for row in rows if isinstance(row, Unreadable)]


def predict_images(
    trainer: Any, paths: Sequence[str], classes: Sequence[str], *, top_k: int = 3, temperature: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one row per image, in the order of `paths`: `path`, what the trainer says, `error` ("" unless it failed).

    The row of an unreadable image has nothing between.

    Args:
        trainer: Loaded, in evaluation mode; its test loader's transform, batch size and workers are used.
        paths: Existing files.
        classes: See `ClassRows`, like the rest.
    """
    make_rows = getattr(trainer, "predict_rows", None) or ClassRows(trainer, classes, top_k=top_k, temperature=temperature)
    # disable=None: a bar on terminals only.
    items = [Datum(impath=path, label=-1) for path in paths]
    for batch, unreadable in tqdm(load_rows(trainer, items), desc="predict", leave=False, disable=None):
        rows = {image.index: {"path": paths[image.index], "error": image.reason} for image in unreadable}
        if batch is not None:
            for index, row in zip(batch["index"].tolist(), make_rows(batch), strict=True):
                rows[index] = {"path": paths[index], **row, "error": ""}
        yield from (rows[index] for index in sorted(rows))


def load_rows(trainer: Any, items: Sequence[Datum]) -> DataLoader:
    """Return a loader of (batch, unreadable images), with the views of the trainer's test loader."""
    cfg, test = trainer.cfg, trainer.test_loader
    views = type(test.dataset)(cfg, items, transform=test.dataset.transform)
    return load_readable(
        views, batch_size=cfg.DATALOADER.TEST.BATCH_SIZE, workers=cfg.DATALOADER.NUM_WORKERS, collate=test.collate_fn
    )


def load_readable(rows: Dataset, *, batch_size: int, workers: int, collate: Callable[[list], dict]) -> DataLoader:
    """Return a loader of (batch, unreadable images) of a data set whose rows may fail."""
    return DataLoader(
        ReadableRows(rows), batch_size=batch_size, num_workers=min(workers, len(rows)), collate_fn=ReadableBatch(collate)
    )


class ClassRows:
    """Rows of a classifier: label, confidence, the k best classes, the distribution over all.

    Args:
        trainer: Its `model_inference` gives logits (B, C). Their facts may hold the `temperature` that training divided them
            by, and a `distribution`, (B, C), where that is learned beside the class.
        classes: Names in label order.
        top_k: Classes to list, 1 or more; at most all are.
        temperature: Fitted on labelled validation images, in place of that of training; None: confidences are as trained.
    """

    def __init__(self, trainer: Any, classes: Sequence[str], *, top_k: int = 3, temperature: float | None = None) -> None:
        self._trainer = trainer
        self._classes = list(classes)
        self._columns = distinct_names(classes)
        self._top_k = top_k
        self._temperature = temperature
        polarities = find_polarities(self._classes)
        self._polarities = None if polarities is None else [POLARITY[sign] for sign in polarities.tolist()]
        settings = getattr(trainer, "settings", {})
        self.unsure_below = settings.UNSURE_BELOW if "UNSURE_BELOW" in settings else None

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one row per image of a test batch."""
        scores = self._trainer.model_inference(batch["img"].to(self._trainer.device))
        facts = getattr(scores, "facts", {})
        logits = scores.as_subclass(Tensor).float()
        temperature = facts.get("temperature", 1.0) if self._temperature is None else self._temperature
        confidence = (logits / temperature).softmax(dim=-1)
        distribution = facts.get("distribution", confidence)
        # Stable, so that the first of equal classes leads, as in the evaluator's arg-max.
        order = logits.argsort(dim=-1, descending=True, stable=True)
        return [self._row(*row) for row in zip(order.tolist(), confidence.tolist(), distribution.tolist(), strict=True)]

    def _row(self, order: list[int], confidence: list[float], distribution: list[float]) -> dict[str, Any]:
        best = order[0]
        row: dict[str, Any] = {
            "label": self._classes[best],
            "confidence": round(confidence[best], DIGITS),
            "calibrated": self._temperature is not None,
        }
        if self.unsure_below is not None:
            row["unsure"] = confidence[best] < self.unsure_below
        if self._polarities is not None:
            row["polarity"] = self._polarities[best]
        row["top"] = [
            {"label": self._classes[label], "confidence": round(confidence[label], DIGITS)} for label in order[: self._top_k]
        ]
        row["distribution"] = {name: round(value, DIGITS) for name, value in zip(self._columns, distribution, strict=True)}
        return row


def distinct_names(classes: Sequence[str]) -> list[str]:
    """Return the class names, with the label added to those that two classes share (ImageNet has two such pairs)."""
    counts = Counter(classes)
    return [name if counts[name] == 1 else f"{name} #{label}" for label, name in enumerate(classes)]


@dataclass
class Tally:
    """Counts of the rows that were written."""

    images: int = 0
    unsure: int = 0
    failed: int = 0

    def count(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass rows on and count them."""
        for row in rows:
            self.images += 1
            self.unsure += bool(row.get("unsure"))
            self.failed += bool(row["error"])
            yield row

    def __str__(self) -> str:
        return f"{self.images} images, {self.unsure} unsure, {self.failed} unreadable"


def describe_prediction(trainer: Any, run: TrainedRun, checkpoint: str | None, temperature: float | None) -> dict[str, Any]:
    """Return what holds for all rows alike, the trainer's own `prediction_facts()` included.

    Args:
        trainer: That made the rows.
        run: Its run.
        checkpoint: Name of its checkpoint file, None without one.
        temperature: The calibrated one, None without one.
    """
    return {
        "run": str(run.path),
        "trainer": run.cfg.TRAINER.NAME,
        "backbone": run.cfg.MODEL.BACKBONE.NAME,
        "checkpoint": checkpoint,
        "calibrated_temperature": temperature,
        "data_hash": run.data_hash,
        "classes": list(run.classes),
        **getattr(trainer, "prediction_facts", dict)(),
    }

"""Captions: what a trained captioner says about images, as one plain dict per image.

A trainer that captions has a class method `load_captioner(cfg, place, epoch) -> Loaded`, which reads a run folder or a weights
file in it and builds no trainer. What it returns has `preprocess` (RGB picture -> tensor), `caption(images, rows) -> list` of
objects with `to_row()`, and `checkpoint` and `facts`, for what holds for all images alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import read_image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from trainers.prediction.rows import load_readable
from trainers.prediction.run import TrainedRun


class CaptionedImage(Protocol):
    """What is said about one image."""

    def to_row(self) -> dict[str, Any]:
        """Return it in JSON's types, with the same keys every time."""


class Loaded(Protocol):
    """What `load_captioner` of a trainer returns.

    Attributes:
        checkpoint: Where its weights lie below the run.
        device: Where it runs.
        facts: What holds for all captions alike, in JSON's types.
    """

    checkpoint: str
    device: Any
    facts: dict[str, Any]

    def preprocess(self, picture: Any) -> Tensor:
        """Return an RGB picture as a row of what `caption` takes."""

    def caption(self, images: Tensor, rows: Sequence[int]) -> list[CaptionedImage]:
        """Return what is said about a batch of images; sampling may depend on their numbers, `rows`."""


class Pictures(Dataset):
    """Rows of `img` and `index`; a file that cannot be read raises.

    Args:
        paths: Files.
        transform: RGB picture -> tensor.
    """

    def __init__(self, paths: Sequence[str], transform: Callable[[Any], Tensor]) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"img": self._transform(read_image(self._paths[index])), "index": index}


def load_captioner(run: TrainedRun, epoch: int | None = None) -> Loaded:
    """Load what captions images from a run's artefact.

    Args:
        run: From `read_run`.
        epoch: Finished epochs; None: the weights file that was named, else the best on validation, else the last.
    Raises:
        OSError: If weights, or the CLIP, are not at hand.
        ValueError: If they do not fit the configuration.
    """
    trainer = TRAINER_REGISTRY.get(run.cfg.TRAINER.NAME)
    try:
        return trainer.load_captioner(run.cfg, run.weights or run.path, epoch)
    except RuntimeError as error:  # weights that cannot be fetched, or no memory for them
        raise OSError(f"cannot build {run.cfg.TRAINER.NAME} on {run.cfg.MODEL.BACKBONE.NAME}: {error}") from error


def caption_images(loaded: Loaded, paths: Sequence[str], *, batch_size: int, workers: int = 0) -> Iterator[dict[str, Any]]:
    """Yield one row per image, in the order of `paths`: `impath`, what is said, `error` ("" unless it failed).

    The row of an unreadable image has nothing between.

    Args:
        loaded: See `load_captioner`.
        paths: Existing files.
        batch_size: Images per batch.
        workers: Processes that decode.
    """
    pictures = Pictures(paths, loaded.preprocess)
    batches = load_readable(pictures, batch_size=batch_size, workers=workers, collate=default_collate)
    for batch, unreadable in tqdm(batches, desc="caption", leave=False, disable=None):
        rows = {image.index: {"impath": paths[image.index], "error": image.reason} for image in unreadable}
        if batch is not None:
            numbers = batch["index"].tolist()
            for index, said in zip(numbers, loaded.caption(batch["img"], numbers), strict=True):
                rows[index] = {"impath": paths[index], **said.to_row(), "error": ""}
        yield from (rows[index] for index in sorted(rows))


@dataclass
class CaptionTally:
    """Counts of the rows that were written."""

    images: int = 0
    truncated: int = 0
    failed: int = 0

    def count(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass rows on and count them."""
        for row in rows:
            self.images += 1
            self.truncated += bool(row.get("truncated"))
            self.failed += bool(row["error"])
            yield row

    def __str__(self) -> str:
        return f"{self.images} images, {self.truncated} captions cut off, {self.failed} unreadable"


def describe_captions(loaded: Loaded, run: TrainedRun) -> dict[str, Any]:
    """Return what holds for all rows alike."""
    return {
        "run": str(run.path),
        "trainer": run.cfg.TRAINER.NAME,
        "backbone": run.cfg.MODEL.BACKBONE.NAME,
        "checkpoint": loaded.checkpoint,
        "data_hash": run.data_hash,
        **loaded.facts,
    }

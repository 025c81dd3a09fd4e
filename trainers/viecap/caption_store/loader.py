"""Training batches straight from the caption store: no worker processes, no padding to a fixed length, nothing to wait for.

Features and token ids lie on the device if there is room; a batch is two gathers there. Order, masks and noise are functions of
(seed, epoch, batch) alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.epoch_order import Position
from trainers.viecap.caption_store.epoch_plan import BatchShape, EpochPlan, noise_seed, plan_epoch
from trainers.viecap.caption_store.training_text import TrainingText

__all__ = ["CaptionBatch", "CaptionLoader", "LazyCaptionLoader"]

logger = logging.getLogger(__name__)

FREE_SHARE = 0.25  # of the device's free memory that the store may take
_BYTES_PER_PLACE = 4 * 8  # order, start, length of a caption

EncodeRows = Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class CaptionBatch:
    """B captions; ids and features are on the loader's device, the lengths on the host, so that nothing has to wait for them.

    Attributes:
        features: CLIP vectors of the captions, not normalised, (B, E), fp32; None where no soft prompt needs them.
        ids: Hard prompt and caption, padded on the right with id 0, (B, T), int64. Soft prompt and T together are a multiple
            of `PAD_MULTIPLE`.
        n_hard: Tokens of the hard prompt, (B,), int64, on the host.
        n_caption: Tokens of the caption, (B,), int64, on the host.
        index: Rows of the store, (B,), int64, on the host.
        noise_seed: Of this batch's noise.
    """

    features: Tensor | None
    ids: Tensor
    n_hard: Tensor
    n_caption: Tensor
    index: Tensor
    noise_seed: int


@dataclass(frozen=True)
class _Placed:
    """An epoch's arrays as tensors on one device."""

    flat: Tensor
    starts: Tensor
    lengths: Tensor
    order: Tensor


class CaptionLoader:
    """Yields the batches of the epoch that `position` names; None for each that is done already.

    Attributes:
        text: What is learned.
        batch_size: Captions per batch.
        latest: Plan of the epoch that was begun last; None before the first.
        is_resident: Whether the tensors lie on `device`.

    Args:
        text: Captions and prompts, at least one batch.
        features: Of all captions of the store, (N, E); None where none are stored.
        shape: Of the batches.
        position: Asked once per epoch, when iteration starts.
        device: Where batches go.
        placement: `auto`: tensors lie on the device if they take less than a quarter of its free memory; `device`, `host`.
        encode_rows: Makes features of rows of the store, where none are stored; None: batches have no features.
    Raises:
        ValueError: If there is less than one batch.
    """

    def __init__(
        self,
        text: TrainingText,
        features: Tensor | None,
        shape: BatchShape,
        *,
        position: Callable[[], Position],
        device: torch.device | str = "cpu",
        placement: str = "auto",
        encode_rows: EncodeRows | None = None,
    ) -> None:
        check_count(len(text), shape.batch_size)
        self.text, self.batch_size = text, shape.batch_size
        self.latest: EpochPlan | None = None
        self._shape, self._position, self._encode_rows = shape, position, encode_rows
        self._device = torch.device(device)
        size = self._count_bytes(features)
        self.is_resident = is_resident(placement, size, self._device)
        self._home = self._device if self.is_resident else torch.device("cpu")
        self._features = self._place_features(features)
        logger.info(
            "caption loader: %d batches of %d captions, %.1f MB on %s", len(self), self.batch_size, size / 1e6, self._home
        )

    def __len__(self) -> int:
        return len(self.text) // self.batch_size

    def plan(self, seed: int, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        return plan_epoch(self.text, self._shape, seed=seed, epoch=epoch)

    def __iter__(self) -> Iterator[CaptionBatch | None]:
        seed, epoch, done = self._position()
        yield from repeat(None, done)
        if done >= len(self):
            return
        self.latest = plan = self.plan(seed, epoch)
        placed = self._place(plan)
        for number in range(done, len(self)):
            yield self._batch(plan, placed, number, noise_seed(seed, epoch, number))

    def _count_bytes(self, features: Tensor | None) -> int:
        """Return what the tensors take: features of the chosen captions, ids with the longest prompts, places."""
        vectors = 0 if features is None else features.shape[1] * features.element_size()
        longest = len(self.text.captions.flat) + len(self.text) * self.text.max_hard
        return len(self.text) * (vectors + _BYTES_PER_PLACE) + 4 * longest

    def _place_features(self, features: Tensor | None) -> Tensor | None:
        if features is None:
            return None
        if len(self.text) < len(features):
            features = features[torch.from_numpy(self.text.rows)]
        return features.to(self._home)

    def _place(self, plan: EpochPlan) -> _Placed:
        ids = plan.text.ids
        # Behind the last caption stands enough for the widest batch to read.
        flat = np.concatenate([ids.flat, np.zeros(int(plan.widths.max()), dtype=np.int32)])
        arrays = (flat, ids.offset[:-1], ids.lengths, plan.order)
        return _Placed(*(torch.from_numpy(array).to(self._home) for array in arrays))

    def _batch(self, plan: EpochPlan, placed: _Placed, number: int, seed: int) -> CaptionBatch:
        places, host_places = placed.order[number], plan.order[number]
        columns = torch.arange(int(plan.widths[number]), device=self._home)
        ids = placed.flat[placed.starts[places, None] + columns].long()
        ids = ids.masked_fill_(columns >= placed.lengths[places, None], 0)
        rows = self.text.rows[host_places]
        return CaptionBatch(
            self._batch_features(places, rows),
            self._send(ids),
            torch.from_numpy(plan.text.n_hard[host_places]),
            torch.from_numpy(plan.text.n_caption[host_places]),
            torch.from_numpy(rows),
            seed,
        )

    def _batch_features(self, places: Tensor, rows: NDArray[np.int64]) -> Tensor | None:
        if self._features is not None:
            return self._send(self._features[places]).float()
        return None if self._encode_rows is None else self._encode_rows(rows).to(self._device).float()

    def _send(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self._device.type:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


class LazyCaptionLoader:
    """A training loader whose length is known before its store is opened; evaluation never opens it.

    Args:
        n_captions: Captions that will be learned.
        batch_size: Captions per batch.
        build: Opens the store; called when the first epoch starts.
    Raises:
        ValueError: If there is less than one batch.
    """

    def __init__(self, n_captions: int, batch_size: int, build: Callable[[], CaptionLoader]) -> None:
        check_count(n_captions, batch_size)
        self.n_captions, self.batch_size = n_captions, batch_size
        self._build = build
        self._opened: CaptionLoader | None = None

    def __len__(self) -> int:
        return self.n_captions // self.batch_size

    def open(self) -> CaptionLoader:
        """Return the loader, built at the first call."""
        if self._opened is None:
            self._opened = self._build()
            if len(self._opened.text) != self.n_captions:
                raise ValueError(f"the store has {len(self._opened.text)} captions to learn; expected {self.n_captions}")
        return self._opened

    @property
    def latest(self) -> EpochPlan | None:
        """Plan of the epoch that was begun last; None before the first."""
        return self._opened.latest if self._opened else None

    def __iter__(self) -> Iterator[CaptionBatch | None]:
        return iter(self.open())


def check_count(n_captions: int, batch_size: int) -> None:
    """Raise ValueError if captions do not fill one batch."""
    if n_captions < batch_size:
        raise ValueError(
            f"there are {n_captions} training captions, less than one batch of {batch_size}; lower "
            "DATALOADER.TRAIN_X.BATCH_SIZE, or raise TRAINER.VIECAP.FEW_SHOT_RATIO or DATA_LIMIT"
        )


def is_resident(placement: str, size: int, device: torch.device) -> bool:
    """Decide whether tensors lie where the batches go.

    Args:
        placement: `auto`, `device` or `host`.
        size: Of the tensors, bytes.
        device: Where batches go.
    """
    if device.type == "cpu" or placement != "auto":
        return placement != "host"
    free = torch.cuda.mem_get_info(device)[0]
    if size >= FREE_SHARE * free:
        logger.info("caption loader: %.1f GB for %.1f GB free on %s: they stay in host memory", size / 1e9, free / 1e9, device)
    return size < FREE_SHARE * free

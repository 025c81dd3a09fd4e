"""Which captions come together in an epoch's batches, and how long these are: sorted by length within chunks, then shuffled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.viecap.caption_store.training_text import EpochText, TrainingText

__all__ = ["BatchShape", "EpochPlan", "noise_seed", "plan_epoch"]

# First word of every seed; numpy's seeds have as many words everywhere, as it takes missing ones for zeros.
_ORDER, _PROMPTS, _NOISE = 11, 12, 13


@dataclass(frozen=True)
class BatchShape:
    """How captions become batches.

    Attributes:
        batch_size: Captions per batch, 1 or more.
        soft_tokens: Tokens of the soft prompt, which count for the length.
        pad_multiple: Sequences, soft prompt included, are padded to a multiple of it.
        bucket_batches: Batches in which captions are sorted by length; 1 = plain shuffling.
    """

    batch_size: int
    soft_tokens: int
    pad_multiple: int = 4
    bucket_batches: int = 50


@dataclass(frozen=True)
class EpochPlan:
    """An epoch, ready to be cut into batches.

    Attributes:
        text: Ids and lengths of every caption.
        order: Places of the captions, batch by batch, (n_batches, B), int64.
        widths: Ids of the longest sequence of each batch, padded, without soft prompt, (n_batches,), int64.
        soft_tokens: Tokens of the soft prompt.
    """

    text: EpochText
    order: NDArray[np.int64]
    widths: NDArray[np.int64]
    soft_tokens: int

    @property
    def real_tokens(self) -> int:
        """Tokens of all batches without padding, soft prompts included."""
        return int(self.text.ids.lengths[self.order].sum()) + self.order.size * self.soft_tokens

    @property
    def padded_tokens(self) -> int:
        """Tokens of all batches, padding included."""
        return int(self.widths.sum() + len(self.widths) * self.soft_tokens) * self.order.shape[1]

    @property
    def padding_share(self) -> float:
        """Share of positions that are padding, in [0, 1)."""
        return 1 - self.real_tokens / self.padded_tokens


def plan_epoch(text: TrainingText, shape: BatchShape, *, seed: int, epoch: int) -> EpochPlan:
    """Plan an epoch; a pure function of its arguments.

    Args:
        text: At least one batch of captions.
        shape: Of the batches.
        seed: Of the run, 0 or more.
        epoch: From 0.
    """
    drawn = text.draw(np.random.default_rng([_PROMPTS, seed, epoch, 0]))
    lengths, size = drawn.ids.lengths, shape.batch_size
    generator = np.random.default_rng([_ORDER, seed, epoch, 0])
    n_batches = len(text) // size
    # The rest goes before sorting: afterwards it would always be the longest captions.
    places = generator.permutation(len(text))[: n_batches * size]
    for start in range(0, len(places), size * shape.bucket_batches):
        chunk = places[start : start + size * shape.bucket_batches]
        places[start : start + len(chunk)] = chunk[np.argsort(lengths[chunk], kind="stable")]
    order = places.reshape(n_batches, size)[generator.permutation(n_batches)]
    longest = lengths[order].max(axis=1) + shape.soft_tokens
    widths = -(-longest // shape.pad_multiple) * shape.pad_multiple - shape.soft_tokens
    return EpochPlan(drawn, order, widths, shape.soft_tokens)


def noise_seed(seed: int, epoch: int, batch: int) -> int:
    """Return the seed of a batch's noise, in [0, 2^63)."""
    return int(np.random.SeedSequence([_NOISE, seed, epoch, batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))

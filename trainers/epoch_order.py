"""Order of the training samples and their random choices as pure functions of (seed, epoch, index).

Dassl's loader shuffles and augments with the global generators, so that the number of workers, or the batch that a resumed run
starts with, would change both. `SeededOrderLoader` takes Dassl's loader apart and puts it together again: same data set, same
sampler, same batches, but every draw has its own seed, and no draw moves the global generators (dropout's, for instance).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["Position", "SeededOrderLoader", "sample_rng"]

# First word of every seed. A seed always has four words: numpy takes missing ones for zeros.
_ORDER, _SAMPLE, _GLOBAL = 1, 2, 3


class Position(NamedTuple):
    """Where a run is: its seed, the epoch (from 0), and how many batches of that epoch are done already."""

    seed: int
    epoch: int
    batches_done: int


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of all random choices for one sample in one epoch.

    Args:
        seed: Of the run, 0 or more.
        epoch: From 0.
        index: Of the sample in its data set.
    """
    return np.random.default_rng([_SAMPLE, seed, epoch, index])


@contextmanager
def _global_generators(*words: int) -> Iterator[None]:
    """Seed the CPU generators of Python, numpy and torch inside the block; afterwards they are where they were.

    Dassl's samplers and torchvision's transforms draw from these.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third = np.random.SeedSequence(words).generate_state(3)
    random.seed(int(first))
    np.random.seed(int(second))
    torch.default_generator.manual_seed(int(third))  # torch.manual_seed would move the GPU's too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class _SeededSamples(Dataset):
    """Answers (seed, epoch, index); the epoch comes with the index, so that persistent workers know it as well."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        with _global_generators(_GLOBAL, *key):
            self.inner.rng = sample_rng(*key)
            return self.inner[key[2]]


class _Batches:
    """Batch sampler: the keys of the batches of one epoch that are not done yet."""

    def __init__(self, inner: Any, position: Callable[[], Position]) -> None:
        self.inner, self.position = inner, position

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        seed, epoch, done = self.position()
        with _global_generators(_ORDER, seed, epoch, 0):
            batches: Sequence[list[int]] = list(self.inner)
        for batch in islice(batches, done, None):
            yield [(seed, epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.inner)


class SeededOrderLoader:
    """A training loader that yields None for every batch done already, without reading data, then the others.

    Before a sample is read, the attribute `rng` of the data set is its `sample_rng`; whatever draws from the global generators
    of Python, numpy or torch meanwhile is seeded alike.

    Attributes:
        dataset: The data set (Dassl's wrapper) of the loader.
        batch_size: Samples per batch.

    Args:
        loader: Dassl's; its sampler, collation, workers and pinning are kept.
        position: Asked once per epoch, when iteration starts.
    """

    def __init__(self, loader: DataLoader, position: Callable[[], Position]) -> None:
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self._position = position
        workers = loader.num_workers
        self._loader = DataLoader(
            _SeededSamples(loader.dataset),
            batch_sampler=_Batches(loader.batch_sampler, position),
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            persistent_workers=loader.persistent_workers,
            prefetch_factor=loader.prefetch_factor if workers else None,
            generator=torch.Generator(),  # seeds the workers; the global one stays where it is
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        yield from repeat(None, self._position().batches_done)
        yield from self._loader

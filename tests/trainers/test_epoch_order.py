"""Order and random choices per sample depend on seed, epoch and index alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from dassl.data.samplers import build_sampler
from torch.utils.data import DataLoader, Dataset

from trainers.epoch_order import Position, SeededOrderLoader, sample_rng


class Draws(Dataset):
    """Twelve samples that consist of what four generators say, and remember who was read."""

    rng = None
    read: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        type(self).read.append(index)
        draws = [self.rng.random(), random.random(), np.random.rand(), torch.rand(()).item()]
        return {"index": index, "draws": np.array(draws)}


def make_loader(position: list[int], *, sampler: str = "RandomSampler", workers: int = 0, persistent: bool = False, **options):
    """Return a loader in batches of five whose position can be moved from outside."""
    data = Draws()
    inner = DataLoader(
        data, batch_size=5, sampler=build_sampler(sampler, data_source=data), num_workers=workers,
        persistent_workers=persistent, **{"drop_last": True} | options,
    )  # fmt: skip
    return SeededOrderLoader(inner, lambda: Position(*position))


def read_all(loader: SeededOrderLoader) -> list[tuple[list[int], list[list[float]]]]:
    return [(batch["index"].tolist(), batch["draws"].tolist()) for batch in loader if batch is not None]


def test_same_place_same_batches_whatever_was_drawn_before() -> None:
    position = [1, 0, 0]
    loader = make_loader(position)
    first = read_all(loader)
    torch.rand(3), random.random(), np.random.rand()
    assert read_all(loader) == read_all(make_loader([1, 0, 0])) == first
    for other in ([2, 0, 0], [1, 1, 0]):
        position[:] = other
        again = read_all(loader)
        assert [batch[0] for batch in again] != [batch[0] for batch in first]
        by_sample = [dict(zip((i for b in run for i in b[0]), (tuple(d) for b in run for d in b[1]))) for run in (first, again)]
        assert all(by_sample[0][i] != by_sample[1][i] for i in by_sample[0].keys() & by_sample[1].keys())


def test_no_two_samples_and_no_two_generators_draw_alike() -> None:
    draws = [value for batch in read_all(make_loader([0, 0, 0])) for row in batch[1] for value in row]
    assert len(set(draws)) == len(draws) == 40


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_alike_and_learn_the_epoch(persistent: bool) -> None:
    position = [3, 0, 0]
    alone, helped = make_loader(position), make_loader(position, workers=2, persistent=persistent)
    for epoch in (0, 1, 2):
        position[1] = epoch
        assert read_all(helped) == read_all(alone)


def test_done_batches_are_none_and_not_read() -> None:
    whole, Draws.read[:] = read_all(make_loader([1, 4, 0])), []
    rest = list(make_loader([1, 4, 1]))
    assert rest[0] is None and len(rest) == 2
    assert rest[1]["index"].tolist() == whole[1][0] == Draws.read


def test_global_generators_stay_where_they_are() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    read_all(make_loader([1, 0, 0], workers=0)), read_all(make_loader([1, 0, 0], workers=1))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_sampler_and_rest_of_the_loader_are_kept() -> None:
    loader = make_loader([1, 5, 0], sampler="SequentialSampler", drop_last=False)
    assert [batch[0] for batch in read_all(loader)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert len(loader) == 3 and loader.batch_size == 5 and isinstance(loader.dataset, Draws)
    assert len(make_loader([1, 0, 0])) == 2


def test_generator_of_a_sample_is_the_documented_one() -> None:
    loader = make_loader([7, 2, 0])
    (index, *_), (draws, *_) = read_all(loader)[0]
    assert draws[0] == sample_rng(7, 2, index).random() != sample_rng(7, 2, index + 1).random()
    assert sample_rng(7, 2, 0).random() != sample_rng(7, 2, 1).random() != sample_rng(2, 7, 1).random()

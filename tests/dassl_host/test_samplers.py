"""Samplers: shares per batch, length, draws, errors."""

import random
import types

import numpy as np
import pytest
from dassl.data.samplers import build_sampler
from torch.utils.data.sampler import RandomSampler, SequentialSampler


def make_source(domains: str, labels: str | None = None) -> list:
    labels = labels or "0" * len(domains)
    return [types.SimpleNamespace(domain=int(d), label=int(label)) for d, label in zip(domains, labels)]


def batches(sampler, size: int) -> list[list[int]]:
    order = list(sampler)
    assert len(order) % size == 0
    return [order[start : start + size] for start in range(0, len(order), size)]


def seed() -> None:
    random.seed(0)
    np.random.seed(0)


def test_plain_samplers_are_torchs():
    source = make_source("000")
    assert isinstance(build_sampler("RandomSampler", data_source=source), RandomSampler)
    assert isinstance(build_sampler("SequentialSampler", data_source=source), SequentialSampler)


def test_random_domain_sampler_fills_batches_with_equal_shares():
    seed()
    source = make_source("000111222222")
    sampler = build_sampler("RandomDomainSampler", data_source=source, batch_size=4, n_domain=2)
    for batch in batches(sampler, 4):
        assert len({source[index].domain for index in batch[:2]}) == 1
        assert {source[index].domain for index in batch[:2]} != {source[index].domain for index in batch[2:]}
    order = list(sampler)
    assert len(order) == len(set(order))


def test_random_domain_sampler_without_number_takes_all_domains():
    seed()
    source = make_source("001122")
    (first, *_) = batches(build_sampler("RandomDomainSampler", data_source=source, batch_size=3, n_domain=0), 3)
    assert {source[index].domain for index in first} == {0, 1, 2}


def test_seq_domain_sampler_orders_domains_and_stops_with_the_smallest():
    seed()
    source = make_source("1111100")
    sampler = build_sampler("SeqDomainSampler", data_source=source, batch_size=2)
    assert [source[index].domain for index in sampler] == [0, 1, 0, 1]
    assert len(sampler) == 4


def test_domain_samplers_refuse_a_batch_size_that_does_not_divide():
    with pytest.raises(AssertionError, match="N_DOMAIN"):
        build_sampler("SeqDomainSampler", data_source=make_source("0011"), batch_size=3)


def test_random_class_sampler_fills_small_classes_with_replacement():
    seed()
    source = make_source("0" * 7, "0000112")
    sampler = build_sampler("RandomClassSampler", data_source=source, batch_size=4, n_ins=2)
    for batch in batches(sampler, 4):
        first, second = ({source[index].label for index in part} for part in (batch[:2], batch[2:]))
        assert len(first) == len(second) == 1
        assert first != second
    assert len(sampler) % 4 == 0


def test_random_class_sampler_errors_name_the_keys():
    source = make_source("00", "01")
    with pytest.raises(ValueError, match="N_INS"):
        build_sampler("RandomClassSampler", data_source=source, batch_size=2, n_ins=4)
    with pytest.raises(AssertionError, match="BATCH_SIZE"):
        build_sampler("RandomClassSampler", data_source=source, batch_size=6, n_ins=2)


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_balanced_samplers_repeat_under_one_seed_and_differ_between_epochs(name):
    def draw() -> tuple[list[int], list[int]]:
        seed()
        source = make_source("01" * 8, "0011" * 4)
        sampler = build_sampler(name, data_source=source, batch_size=4, n_domain=2, n_ins=2)
        return list(sampler), list(sampler)

    first, second = draw()
    assert (first, second) == draw()
    assert first != second


def test_unknown_sampler_lists_the_allowed_names():
    with pytest.raises(ValueError, match="'foo'.*RandomSampler.*RandomClassSampler"):
        build_sampler("foo", data_source=make_source("0"))

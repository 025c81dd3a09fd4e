"""Samplers over lists of `Datum`: plain ones from torch, and three that balance domains or classes in each batch.

The balanced samplers draw from the global `random` and `numpy.random` generators, once on construction (their length
depends on the draw) and once per epoch, so that a seeded run sees the same batches as on upstream Dassl.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from dassl.data.datasets import Datum

SAMPLER_NAMES = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")


class _DomainSampler(Sampler[int]):
    """Fill each batch with equally many items of several domains, until one domain cannot fill its share."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None) -> None:
        self.data_source = data_source
        self.domain_dict: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.domain_dict[item.domain].append(index)
        self.domains = list(self.domain_dict)
        self.batch_size = batch_size
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        assert batch_size % self.n_domain == 0, (
            f"BATCH_SIZE is {batch_size}; expected a multiple of the {self.n_domain} domains per batch (N_DOMAIN)"
        )
        self.n_img_per_domain = batch_size // self.n_domain

    def _choose_domains(self) -> list[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        order: list[int] = []
        while True:
            for domain in (chosen := self._choose_domains()):
                drawn = random.sample(left[domain], self.n_img_per_domain)
                order.extend(drawn)
                taken = set(drawn)
                left[domain] = [index for index in left[domain] if index not in taken]
            if any(len(left[domain]) < self.n_img_per_domain for domain in chosen):
                return iter(order)

    def __len__(self) -> int:
        return self.length


class RandomDomainSampler(_DomainSampler):
    """Draw `n_domain` random domains per batch.

    Args:
        data_source: Items with a `domain`.
        batch_size: Images per batch, a multiple of `n_domain`.
        n_domain: Domains per batch; None or <= 0 means all.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None) -> None:
        super().__init__(data_source, batch_size, n_domain)
        self.length = len(list(iter(self)))

    def _choose_domains(self) -> list[int]:
        return random.sample(self.domains, self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Take all domains in ascending order in each batch.

    Args:
        data_source: Items with a `domain`.
        batch_size: Images per batch, a multiple of the number of domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, None)
        self.domains.sort()
        self.length = len(list(iter(self)))

    def _choose_domains(self) -> list[int]:
        return self.domains


class RandomClassSampler(Sampler[int]):
    """Draw `batch_size // n_ins` classes per batch and `n_ins` items of each.

    A class with fewer than `n_ins` items is filled up with replacement; a remainder of a class is left out.

    Args:
        data_source: Items with a `label`.
        batch_size: Images per batch, at least `n_ins`.
        n_ins: Images per class in a batch.
    Raises:
        ValueError: If `batch_size` is smaller than `n_ins`.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        if batch_size < n_ins:
            raise ValueError(f"BATCH_SIZE is {batch_size}; expected at least N_INS = {n_ins}")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.index_dic[item.label].append(index)
        self.labels = list(self.index_dic)
        assert len(self.labels) >= self.ncls_per_batch, (
            f"{len(self.labels)} classes cannot fill a batch of {self.ncls_per_batch} (BATCH_SIZE // N_INS)"
        )
        self.length = len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        groups = {label: self._draw_groups(label) for label in self.labels}
        open_labels = [label for label in self.labels if groups[label]]
        order: list[int] = []
        while len(open_labels) >= self.ncls_per_batch:
            for label in random.sample(open_labels, self.ncls_per_batch):
                order.extend(groups[label].pop(0))
                if not groups[label]:
                    open_labels.remove(label)
        return iter(order)

    def _draw_groups(self, label: int) -> list[list[int]]:
        """Shuffle a class and cut it into groups of `n_ins`."""
        indices = list(self.index_dic[label])
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        random.shuffle(indices)
        full = len(indices) - len(indices) % self.n_ins
        return [indices[start : start + self.n_ins] for start in range(0, full, self.n_ins)]

    def __len__(self) -> int:
        return self.length


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Build the sampler that ``DATALOADER.*.SAMPLER`` names.

    Args:
        sampler_type: One of `SAMPLER_NAMES`.
        cfg: Unused; part of the public signature.
        data_source: Items to sample.
        batch_size: Images per batch.
        n_domain: Domains per batch (RandomDomainSampler); <= 0 means all.
        n_ins: Images per class in a batch (RandomClassSampler).
    Raises:
        ValueError: If the name is unknown.
    """
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    raise ValueError(f"DATALOADER.*.SAMPLER is {sampler_type!r}; expected one of {', '.join(SAMPLER_NAMES)}")

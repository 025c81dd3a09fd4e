"""From candidates to matches: each is compared with the stored pixels, and why it fails is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache.entry import Facts
from trainers.bgobj_llava.cache.index import CacheIndex
from trainers.bgobj_llava.cache.match import (
    DAMAGED,
    NO_CANDIDATE,
    REASONS,
    Verdict,
    compare_approximately,
    compare_exactly,
    rule_out,
)
from trainers.bgobj_llava.cache.options import CacheOptions
from trainers.bgobj_llava.cache.scene import Scene


@dataclass(frozen=True, eq=False)
class Match:
    """An entry whose pixels were compared; `drift` as in `Verdict`."""

    facts: Facts
    drift: float


class Search:
    """One look-up.

    Args:
        scene: The request.
        index: Entries of the context.
        options: Of the cache.
        read_rows: Stored pixels of an entry; None if they are damaged.
    """

    def __init__(
        self, scene: Scene, index: CacheIndex, options: CacheOptions, read_rows: Callable[[Facts], NDArray[np.uint8] | None]
    ) -> None:
        self._scene, self._index, self._options, self._read_rows = scene, index, options, read_rows
        self.reasons: set[str] = set()
        self.n_compared = 0

    @property
    def reason(self) -> str:
        """Why nothing matched."""
        return next((reason for reason in REASONS if reason in self.reasons), NO_CANDIDATE)

    def matches(self, previous: Facts | None) -> Iterator[Match]:
        """Yield entries that may stand for the request's background, the best first.

        Exact ones come first: that of the stream's previous request, then by size. With `approx`, similar ones follow.

        Args:
            previous: Entry of the stream's previous request.
        """
        first = [previous] if previous is not None else []
        yield from self._exact(first)
        found = self._index.find(self._scene)
        self.reasons |= found.reasons
        yield from self._exact(facts for facts in found.facts if facts is not previous)
        if self._options.match == "approx":
            yield from self._approximate(first)
            alike = self._index.find_alike(self._scene, self._options.topk)
            similar = self._approximate(facts for facts in alike if facts is not previous)
            yield from sorted(similar, key=lambda match: (-match.facts.n_patches, match.drift))

    def _exact(self, candidates: Iterable[Facts]) -> Iterator[Match]:
        for facts in candidates:
            reason = rule_out(facts, self._scene, match=self._options.match)
            verdict = Verdict(reason) if reason else self._compare(facts, compare_exactly)
            yield from self._judge(facts, verdict)

    def _approximate(self, candidates: Iterable[Facts]) -> Iterator[Match]:
        compare = partial(compare_approximately, tau=self._options.tau)
        for facts in candidates:
            yield from self._judge(facts, self._compare(facts, compare))

    def _compare(self, facts: Facts, compare: Callable[[Facts, NDArray[np.uint8], Scene], Verdict]) -> Verdict:
        rows = self._read_rows(facts)
        if rows is None:
            return Verdict(DAMAGED)
        self.n_compared += 1
        return compare(facts, rows, self._scene)

    def _judge(self, facts: Facts, verdict: Verdict) -> Iterator[Match]:
        if verdict.accepted:
            yield Match(facts, verdict.drift)
        else:
            self.reasons.add(verdict.reason)

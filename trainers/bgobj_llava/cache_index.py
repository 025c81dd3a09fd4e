"""Which entries could match a request: a first choice that verification then decides about."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache_entry import Facts
from trainers.bgobj_llava.cache_scene import Scene


class CacheIndex:
    """Entries by their anchors and by their colours.

    An entry stands in the bucket of that anchor which fewest others have, so that a picture of a logo on thousands of
    backgrounds does not make thousands of candidates.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._buckets: dict[int, dict[str, Facts]] = {}
        self._home: dict[str, int] = {}
        self._colours: tuple[list[str], NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self._facts)

    def __contains__(self, key: str) -> bool:
        return key in self._facts

    def __iter__(self) -> Iterator[Facts]:
        return iter(list(self._facts.values()))

    def get(self, key: str) -> Facts | None:
        return self._facts.get(key)

    def add(self, facts: Facts) -> None:
        """Register an entry; one that is there already stays."""
        if facts.key in self._facts:
            return
        home = min(facts.anchors, key=lambda code: len(self._buckets.get(code, ())))
        self._facts[facts.key] = facts
        self._home[facts.key] = home
        self._buckets.setdefault(home, {})[facts.key] = facts
        self._colours = None

    def remove(self, key: str) -> None:
        """Forget an entry, if it is there."""
        if key not in self._facts:
            return
        del self._facts[key]
        home = self._home.pop(key)
        del self._buckets[home][key]
        if not self._buckets[home]:
            del self._buckets[home]
        self._colours = None

    def find(self, scene: Scene) -> list[Facts]:
        """Return the entries all of whose anchors the request shows, the largest background first."""
        hits = [bucket for code in scene.anchor_codes if (bucket := self._buckets.get(code))]
        if not hits:
            return []
        shown = set(scene.anchor_codes)
        found = [facts for bucket in hits for facts in bucket.values() if shown.issuperset(facts.anchors)]
        return sorted(found, key=lambda facts: -facts.n_patches)

    def find_alike(self, scene: Scene, count: int) -> list[Facts]:
        """Return the `count` entries of most similar colours, the most similar first."""
        if not self._facts or count < 1:
            return []
        if self._colours is None:
            keys = list(self._facts)
            self._colours = keys, np.stack([self._facts[key].colours for key in keys])
        keys, matrix = self._colours
        cosines = matrix @ scene.colours
        best = np.argsort(-cosines, kind="stable")[:count]
        return [self._facts[keys[number]] for number in best]

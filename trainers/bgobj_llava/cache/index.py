"""Which entries could match a request: a first choice that verification then decides about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache.entry import Facts
from trainers.bgobj_llava.cache.match import OBJECT_INSIDE, PIXELS_DIFFER
from trainers.bgobj_llava.cache.scene import Scene


@dataclass(frozen=True)
class Candidates:
    """Outcome of a search by anchors.

    Attributes:
        facts: Entries whose patches hold no object and whose checksums agree, the largest background first.
        reasons: Why others with an anchor in common were left out.
    """

    facts: list[Facts] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)


class _Bucket:
    """Entries with an anchor in common, by their set of patches and the sum of their codes.

    Thousands of entries may differ in few patches (a clock in the corner of a screen); they cost one sum per set of patches.
    """

    def __init__(self) -> None:
        self._groups: dict[bytes, dict[int, list[Facts]]] = {}
        self._sets: NDArray[np.uint64] | None = None  # one row per group, 1 for its patches
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, facts: Facts) -> None:
        self._count += 1
        group = self._groups.setdefault(facts.patches.tobytes(), {})
        self._sets = self._sets if group else None
        group.setdefault(facts.total, []).append(facts)

    def remove(self, facts: Facts) -> None:
        self._count -= 1
        name = facts.patches.tobytes()
        same = self._groups[name][facts.total]
        same[:] = [each for each in same if each is not facts]
        if not same:
            del self._groups[name][facts.total]
        if not self._groups[name]:
            del self._groups[name]
            self._sets = None

    def search(self, scene: Scene, found: Candidates) -> None:
        """Add what could match."""
        if self._sets is None:
            self._sets = np.stack([np.frombuffer(name, dtype=bool) for name in self._groups]).astype(np.uint64)
        blocked = self._sets[:, scene.raw].any(axis=1).tolist()
        totals = (self._sets @ scene.codes).tolist()
        for group, is_blocked, total in zip(self._groups.values(), blocked, totals, strict=True):
            same = () if is_blocked else group.get(total, ())
            found.facts.extend(same)
            if not same:
                found.reasons.add(OBJECT_INSIDE if is_blocked else PIXELS_DIFFER)


class CacheIndex:
    """Entries by their anchors and by their colours.

    An entry stands in the bucket of that anchor which fewest others have, so that a logo on thousands of backgrounds does not
    make thousands of candidates. Only entries of images with as many patches are looked at.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._buckets: dict[int, dict[int, _Bucket]] = {}  # number of an image's patches -> anchor -> entries
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
        buckets = self._buckets.setdefault(len(facts.patches), {})
        home = min(facts.anchors, key=lambda code: len(buckets.get(code, ())))
        self._facts[facts.key] = facts
        self._home[facts.key] = home
        buckets.setdefault(home, _Bucket()).add(facts)
        self._colours = None

    def remove(self, key: str) -> None:
        """Forget an entry, if it is there."""
        if key not in self._facts:
            return
        facts, home = self._facts.pop(key), self._home.pop(key)
        buckets = self._buckets[len(facts.patches)]
        buckets[home].remove(facts)
        if not len(buckets[home]):
            del buckets[home]
        self._colours = None

    def find(self, scene: Scene) -> Candidates:
        """Return the entries that share an anchor with the request and are the same as far as checksums tell."""
        found, buckets = Candidates(), self._buckets.get(len(scene.raw), {})
        for code in scene.anchor_codes if buckets else ():
            bucket = buckets.get(code)
            if bucket is not None:
                bucket.search(scene, found)
        found.facts.sort(key=lambda facts: -facts.n_patches)
        return found

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

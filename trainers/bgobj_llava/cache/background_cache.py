"""A cache of backgrounds that never answers from another image.

An entry holds a set of patches B_e, their pixels, and what the model made of them. A request may use it if (i) none of its
objects lies in B_e and (ii) its pixels on B_e are the stored ones. What finds candidates is fast and may be wrong; the stored
pixels decide, so a false candidate is a miss. Then the background of the answer is B_e, and every other patch is encoded anew.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.bgobj_llava.cache.counters import CacheCounters
from trainers.bgobj_llava.cache.disk import DamagedEntry, DiskTier, ForeignFile, read_rows
from trainers.bgobj_llava.cache.entry import Entry, Facts, Payload, own_memory
from trainers.bgobj_llava.cache.index import CacheIndex
from trainers.bgobj_llava.cache.match import BG_EMPTY, DAMAGED, FINGERPRINT
from trainers.bgobj_llava.cache.options import CacheOptions, Hit, Miss
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene
from trainers.bgobj_llava.cache.search import Match, Search
from trainers.bgobj_llava.cache.tiers import MemoryTier, TierStack

logger = logging.getLogger(__name__)

GIB = 2**30
MAX_REMEMBERED = 100_000  # sightings and streams; the oldest are forgotten
_UNREADABLE = (DamagedEntry, ForeignFile, FileNotFoundError, KeyError)


class BackgroundCache:
    """Backgrounds by their pixels. Thread-safe. At work in evaluation and prediction only; whoever trains calls `new_context`.

    Args:
        options: See there.
        device: Of the model.
        saved_flops: (background patches, level) -> floating-point operations that a hit saves; None: not counted.
    """

    def __init__(
        self,
        options: CacheOptions | None = None,
        *,
        device: torch.device | str = "cpu",
        saved_flops: Callable[[int, str], float] | None = None,
    ) -> None:
        self.options = options or CacheOptions()
        self.counters = CacheCounters()
        self.context = ""
        self._device = torch.device(device)
        self._saved_flops = saved_flops
        self._lock = threading.RLock()
        self._index, self._foreign = CacheIndex(), CacheIndex()
        self._streams: OrderedDict[str, str] = OrderedDict()
        self._sightings: OrderedDict[str, int] = OrderedDict()
        self._tiers = TierStack(self._memory(), self._open_disk(), self.counters, self._forget)
        self._exact_hits = 0

    def new_context(self, context: str) -> None:
        """Make everything that belongs to another context unreachable, and free it.

        Files of earlier runs stay: they may belong to a model that comes back. `scripts/bgobj_cache.py purge` removes them.

        Args:
            context: From `cache_context`.
        """
        with self._lock:
            if context == self.context:
                return
            self._free_old()
            known = [*self._index, *self._foreign]
            self.context = context
            self._index, self._foreign = CacheIndex(), CacheIndex()
            for facts in known:
                if facts.key in self._tiers:
                    (self._index if facts.context == context else self._foreign).add(facts)
            if len(self._foreign) and not len(self._index):
                logger.warning(
                    "Cache: none of the %d entries in %s belongs to this model and its settings; they are not used",
                    len(self._foreign), self.options.folder,
                )  # fmt: skip

    def look_up(self, request: CacheRequest, context: str) -> Hit | Miss:
        """Find the largest stored background that may stand for the request's; a hit has to be released."""
        with self._lock:
            scene = Scene(request)
            result = self._look_up(scene, context)
            self.counters.requests += 1
            if isinstance(result, Miss):
                self.counters.misses[result.reason] += 1
            else:
                self._count_hit(result)
                self._remember(self._streams, scene.stream_id, result.entry.key)
            return result

    def store(
        self, request: CacheRequest, context: str, tokens: Tensor, pairs: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
    ) -> Entry | None:
        """Store the background of a request, if it has been seen often enough and there is room.

        Args:
            request: Its background is the complement of `objects`.
            context: That the tensors were computed in.
            tokens: Projected background tokens in raster order, (n_b, d).
            pairs: Keys and values up to the end of the background, as `PrefillState.pairs` gives; {} = none.
        Returns:
            The entry; None if it was not stored.
        Raises:
            ValueError: If the number of tokens is not that of background patches.
        """
        with self._lock:
            scene = Scene(request)
            count = int(scene.background.sum())
            if len(tokens) != count:
                raise ValueError(f"{len(tokens)} tokens for a background of {count} patches")
            if count == 0 or context != self.context:
                return self._reject(BG_EMPTY if count == 0 else FINGERPRINT)
            entry = scene.entry(context, Payload(tokens, pairs if self.options.mode == "kv" else {}).map(own_memory))
            if not self._is_admitted(entry.key):
                return self._reject("not seen often enough")
            return self._insert(entry, scene)

    def close(self) -> None:
        """Write what is in memory to the disk tier, if there is one, and free it."""
        with self._lock:
            self._tiers.flush()
            self._tiers.clear_memory()
            self._index = CacheIndex()
            self._foreign = CacheIndex()
            self.context = ""
            self._count_bytes()

    @property
    def n_pinned(self) -> int:
        """Entries in use."""
        return self._tiers.n_pinned

    def __len__(self) -> int:
        """Entries that can be reached."""
        return len(self._index)

    def holds(self, key: str) -> bool:
        """Whether an entry can be reached."""
        return key in self._index

    def _look_up(self, scene: Scene, context: str) -> Hit | Miss:
        if not scene.background.any():
            return Miss(BG_EMPTY)
        if not self.context:
            self.new_context(context)
        if context != self.context:
            return Miss(FINGERPRINT)
        search = Search(scene, self._index, self.options, self._read_rows)
        try:
            previous = self._index.get(self._streams.get(scene.stream_id, ""))
            for match in search.matches(previous):
                hit = self._take(match)
                if hit is not None:
                    return hit
                search.reasons.add(DAMAGED)
        finally:
            self.counters.verified += search.n_compared
        if not search.reasons and self._foreign.find(scene).facts:
            return Miss(FINGERPRINT)
        return Miss(search.reason)

    def _read_rows(self, facts: Facts) -> NDArray | None:
        """Return an entry's stored pixels, None if its file is damaged."""
        entry = self._tiers.peek(facts.key)
        if entry is not None:
            return entry.rows
        try:
            return read_rows(self._tiers.disk.path(facts.key), facts)
        except DamagedEntry as error:
            self._drop_damaged(facts.key, error)
            return None

    def _take(self, match: Match) -> Hit | None:
        """Pin an entry and bring it to the device; None if its file is damaged."""
        key = match.facts.key
        self._tiers.pin(key)
        try:
            entry, tier = self._tiers.fetch(key)
        except _UNREADABLE as error:
            self._tiers.unpin(key)
            self._drop_damaged(key, error)
            return None
        payload = entry.payload if self.options.mode == "kv" else entry.payload.without_pairs()
        payload = payload.map(lambda tensor: tensor.to(self._device))
        exact, level = match.drift == 0, payload.level
        saved = self._saved_flops(entry.facts.n_patches, level) if self._saved_flops is not None else 0.0
        audit = exact and self._is_audited()
        return Hit(entry, payload, level, tier, exact, match.drift, audit, saved, self._releaser(key))

    def _is_audited(self) -> bool:
        self._exact_hits += 1
        return self.options.audit_every > 0 and self._exact_hits % self.options.audit_every == 0

    def _releaser(self, key: str) -> Callable[[], None]:
        """Return what gives an entry back; only its first call counts."""
        held = [key]

        def release() -> None:
            with self._lock:
                if held:
                    self._tiers.unpin(held.pop())

        return release

    def _insert(self, entry: Entry, scene: Scene) -> Entry | None:
        key = entry.key
        is_better = entry.payload.level == "kv" and key in self._tiers and self._tiers.level(key) == "tokens"
        if key not in self._tiers or is_better:
            if not self._tiers.insert(entry):
                return self._reject("no room")
            self._index.add(entry.facts)
            self.counters.stored += 1
        self._remember(self._streams, scene.stream_id, key)
        self._count_bytes()
        return entry

    def _is_admitted(self, key: str) -> bool:
        """Count a sighting; what is stored already may come back better."""
        if self.options.admit_after == 1 or key in self._tiers:
            return True
        self._remember(self._sightings, key, self._sightings.get(key, 0) + 1)
        return self._sightings[key] >= self.options.admit_after

    def _reject(self, reason: str) -> None:
        self.counters.rejected[reason] += 1

    def _count_hit(self, hit: Hit) -> None:
        counters = self.counters
        counters.hits[hit.level, hit.tier] += 1
        counters.inexact += not hit.exact
        counters.audits += hit.audit
        counters.saved_flops += hit.flops_saved
        self._count_bytes()

    def _count_bytes(self) -> None:
        self.counters.nbytes = {tier.name: tier.nbytes for tier in self._tiers.tiers}

    def _forget(self, key: str) -> None:
        """An entry has left the last tier."""
        self._index.remove(key)
        self._foreign.remove(key)

    def _drop_damaged(self, key: str, error: Exception) -> None:
        logger.warning("Cache: an entry is skipped: %s", error)
        self.counters.damaged += 1
        if self._tiers.disk is not None:
            self._tiers.disk.forget(key)
        if key not in self._tiers:
            self._index.remove(key)

    def _free_old(self) -> None:
        """Drop what was computed in the context that ends: all of memory, and the files that this cache wrote."""
        self._tiers.clear_memory()
        if self._tiers.disk is not None:
            for key in list(self._tiers.disk.written):
                self._tiers.disk.remove(key)
        self._streams.clear()
        self._sightings.clear()
        self._count_bytes()

    def _memory(self) -> list[MemoryTier]:
        options, cpu = self.options, torch.device("cpu")
        tiers = [MemoryTier("device", int(options.device_gib * GIB), device=self._device)]
        if self._device.type == "cuda":
            tiers.append(MemoryTier("host", int(options.host_gib * GIB), device=cpu, pinned=True))
        return tiers

    def _open_disk(self) -> DiskTier | None:
        """Register what earlier runs left; which of it belongs here is known with the context."""
        options = self.options
        if not options.disk_gib:
            return None
        disk = DiskTier(Path(options.folder), int(options.disk_gib * GIB), keeps_kv=options.disk_kv == "always")
        found, self.counters.damaged, self.counters.foreign = disk.scan()
        for facts in found:
            self._foreign.add(facts)
        return disk

    @staticmethod
    def _remember(memory: OrderedDict, key: str, value: str | int) -> None:
        if key:
            memory[key] = value
            memory.move_to_end(key)
            if len(memory) > MAX_REMEMBERED:
                memory.popitem(last=False)

"""Where entries are kept: the model's device, pinned host memory, disk; each with a byte budget.

What has not been used for longest leaves a tier first, to the next one down before it is dropped. Entries in use stay.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor

from trainers.bgobj_llava.cache.counters import CacheCounters
from trainers.bgobj_llava.cache.disk import DiskTier, read_entry
from trainers.bgobj_llava.cache.entry import Entry, own_memory


class Tier(Protocol):
    """A place for entries."""

    name: str
    budget: int

    @property
    def nbytes(self) -> int: ...

    def __contains__(self, key: str) -> bool: ...

    def size_of(self, entry: Entry) -> int: ...

    def size_held(self, key: str) -> int: ...

    def holds(self, entry: Entry) -> bool: ...

    def put(self, entry: Entry) -> bool: ...

    def touch(self, key: str) -> None: ...

    def oldest(self, pinned: Collection[str]) -> str | None: ...

    def remove(self, key: str) -> None: ...


class MemoryTier:
    """Entries in memory, in the order of their use.

    Args:
        name: `device` or `host`.
        budget: Bytes.
        device: Where tensors live.
        pinned: Whether host memory is pinned, so that it can be copied to a GPU while that computes.
    """

    def __init__(self, name: str, budget: int, *, device: torch.device, pinned: bool = False) -> None:
        self.name, self.budget = name, budget
        self._device, self._pinned = device, pinned
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self.nbytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def keys(self) -> list[str]:
        """Return all keys, the one used longest ago first."""
        return list(self._entries)

    def size_of(self, entry: Entry) -> int:
        return entry.nbytes

    def size_held(self, key: str) -> int:
        """Return the bytes of an entry that is here, else 0."""
        return self._entries[key].nbytes if key in self._entries else 0

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is here with all that would be kept of it."""
        return entry.key in self and self[entry.key].payload.level == entry.payload.level

    def put(self, entry: Entry) -> bool:
        """Take an entry in, in place of one of the same key."""
        self.remove(entry.key)
        entry = entry.with_payload(entry.payload.map(self._place))
        self._entries[entry.key] = entry
        self.nbytes += entry.nbytes
        return True

    def touch(self, key: str) -> None:
        self._entries.move_to_end(key)

    def oldest(self, pinned: Collection[str]) -> str | None:
        """Return the key of the entry to go first, None if all are in use."""
        return next((key for key in self._entries if key not in pinned), None)

    def remove(self, key: str) -> None:
        """Drop an entry, if it is there."""
        entry = self._entries.pop(key, None)
        self.nbytes -= entry.nbytes if entry else 0

    def _place(self, tensor: Tensor) -> Tensor:
        tensor = own_memory(tensor).to(self._device)
        return tensor.pin_memory() if self._pinned and not tensor.is_pinned() else tensor


class TierStack:
    """All tiers in use, the fastest first. Not thread-safe: the cache's lock guards it.

    Args:
        memory: Tiers in memory; those without a budget are left out.
        disk: None: nothing goes to disk.
        counters: Where evictions are counted.
        on_gone: Called with the key of an entry that has left the last tier.
    """

    def __init__(
        self, memory: list[MemoryTier], disk: DiskTier | None, counters: CacheCounters, on_gone: Callable[[str], None]
    ) -> None:
        self.memory = [tier for tier in memory if tier.budget > 0]
        self.disk = disk
        self._counters = counters
        self._on_gone = on_gone
        self._pins: Counter[str] = Counter()

    @property
    def tiers(self) -> list[Tier]:
        return [*self.memory, *([self.disk] if self.disk else [])]

    def __contains__(self, key: str) -> bool:
        return any(key in tier for tier in self.tiers)

    def level(self, key: str) -> str:
        """Return `kv` or `tokens`, whichever an entry that is there has at best."""
        levels = [tier[key].payload.level for tier in self.memory if key in tier]
        levels += [self.disk.level(key)] if self.disk and key in self.disk else []
        return "kv" if "kv" in levels else "tokens"

    def peek(self, key: str) -> Entry | None:
        """Return an entry that is in memory."""
        return next((tier[key] for tier in self.memory if key in tier), None)

    def fetch(self, key: str) -> tuple[Entry, str]:
        """Return an entry and the name of the tier it was in, and bring it to the fastest tier that has room for it.

        Raises:
            DamagedEntry: If its file is damaged.
            KeyError, FileNotFoundError: If it is nowhere.
        """
        for tier in self.memory:
            if key in tier:
                entry = tier[key]
                tier.touch(key)
                return (entry if tier is self.memory[0] else self._promote(entry)), tier.name
        if self.disk is None or key not in self.disk:
            raise KeyError(key)
        entry = read_entry(self.disk.path(key))
        self.disk.touch(key)
        return self._promote(entry), "disk"

    def insert(self, entry: Entry, *, start: int = 0) -> bool:
        """Put an entry in the first tier from number `start` on that can hold it; False if none can."""
        for number, tier in enumerate(self.tiers[start:], start):
            if tier.holds(entry):
                tier.touch(entry.key)
                return True
            if self._make_room(number, entry) and tier.put(entry):
                return True
        return False

    def pin(self, key: str) -> None:
        self._pins[key] += 1

    def unpin(self, key: str) -> None:
        self._pins[key] -= 1
        if self._pins[key] <= 0:
            del self._pins[key]

    @property
    def n_pinned(self) -> int:
        return len(self._pins)

    def clear_memory(self) -> None:
        """Free all entries in memory, those in use, too: who uses one holds its tensors."""
        for tier in self.memory:
            for key in tier.keys():
                tier.remove(key)

    def remove(self, key: str) -> None:
        """Drop an entry from every tier."""
        for tier in self.tiers:
            tier.remove(key)

    def flush(self) -> None:
        """Write what is in memory to disk, as far as its budget goes; the last used ones are written last, so they stay."""
        number = len(self.memory)
        for tier in reversed(self.memory):
            for key in tier.keys():
                if self.disk is not None and (self.disk.holds(tier[key]) or self._make_room(number, tier[key])):
                    self.disk.put(tier[key])

    def _promote(self, entry: Entry) -> Entry:
        """Move an entry to the fastest tier, unless those in use leave no room there."""
        if not self.memory:
            return entry
        top = self.memory[0]
        in_use = sum(top[key].nbytes for key in self._pins if key in top)
        if entry.nbytes + in_use > top.budget:
            return entry
        for tier in self.memory[1:]:  # first of all, so that what makes room can go there
            tier.remove(entry.key)
        self._make_room(0, entry)
        top.put(entry)
        return top[entry.key]

    def _make_room(self, number: int, entry: Entry) -> bool:
        """Push older entries out of a tier until one fits, in place of one of its key; False if it cannot."""
        tier = self.tiers[number]
        if tier.size_of(entry) > tier.budget:
            return False
        more = tier.size_of(entry) - tier.size_held(entry.key)
        while tier.nbytes + more > tier.budget:
            victim = tier.oldest({*self._pins, entry.key})
            if victim is None:
                break
            self._push_down(number, victim)
        return tier.nbytes + more <= tier.budget

    def _push_down(self, number: int, key: str) -> None:
        tier = self.tiers[number]
        entry = tier[key] if isinstance(tier, MemoryTier) else None
        tier.remove(key)
        if entry is not None and self.insert(entry, start=number + 1):
            self._counters.demoted[tier.name] += 1
        elif key not in self:
            self._counters.evicted[tier.name] += 1
            self._on_gone(key)

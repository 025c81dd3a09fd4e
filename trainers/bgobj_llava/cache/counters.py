"""What a cache has done so far, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from trainers.bgobj_llava.cache.match import REASONS


@dataclass
class CacheCounters:
    """Counts since a cache was opened; guarded by the cache's own lock.

    Attributes:
        requests: Look-ups.
        hits: (level, tier) -> look-ups answered from there; levels `tokens` and `kv`, tiers `device`, `host`, `disk`.
        inexact: Hits whose pixels are similar, not equal.
        misses: Reason -> look-ups that found nothing.
        verified: Comparisons of stored pixels.
        stored: Entries taken in.
        rejected: Reason -> entries not taken in.
        demoted: Tier -> entries that moved down from it.
        evicted: Tier -> entries that were dropped from it for good.
        audits: Exact hits that were recomputed.
        damaged, foreign: Files that were skipped: unreadable or altered ones, and those that are no entries.
        saved_flops: Not computed, thanks to hits; 0 if nobody says what they cost.
        nbytes: Tier -> bytes held now.
    """

    requests: int = 0
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    inexact: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    stored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    demoted: Counter[str] = field(default_factory=Counter)
    evicted: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    damaged: int = 0
    foreign: int = 0
    saved_flops: float = 0.0
    nbytes: dict[str, int] = field(default_factory=dict)

    @property
    def n_hits(self) -> int:
        return sum(self.hits.values())

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that hit, [0, 1]; 0 without any."""
        return self.n_hits / self.requests if self.requests else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types; every reason of a miss is there."""
        return {
            "requests": self.requests,
            "hits": {f"{level}/{tier}": count for (level, tier), count in sorted(self.hits.items())},
            "hit_rate": self.hit_rate,
            "inexact": self.inexact,
            "misses": {reason: self.misses[reason] for reason in REASONS},
            "verified": self.verified,
            "stored": self.stored,
            "rejected": dict(self.rejected),
            "demoted": dict(self.demoted),
            "evicted": dict(self.evicted),
            "audits": self.audits,
            "damaged": self.damaged,
            "foreign": self.foreign,
            "saved_flops": self.saved_flops,
            "bytes": dict(self.nbytes),
        }

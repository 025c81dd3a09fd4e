"""What a cache of backgrounds is asked to do, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from trainers.bgobj_llava.cache.entry import Entry, Payload
from trainers.bgobj_llava.cache.match import MATCHES

NODE = "TRAINER.BGOBJLLAVA.CACHE"
MODES = ("kv", "tokens")


@dataclass(frozen=True)
class CacheOptions:
    """What is cached, what counts as known, and where it is kept (`TRAINER.BGOBJLLAVA.CACHE`).

    Attributes:
        mode: `kv`: tokens, and keys and values of the prefix; `tokens`.
        match: `contained`: pixels are equal; `identical`: and patches are those of the request; `approx`: see `tau`.
        tau: Of `approx`: largest mean difference of a patch, grey levels, [0, 255).
        topk: Of `approx`: entries compared, from 1.
        admit_after: Sightings of a background until it is stored, from 1.
        audit_every: Every so many exact hits one is to be recomputed; 0 = never.
        device_gib, host_gib, disk_gib: Budgets; 0 = unused. Host memory is used beside a GPU only.
        folder: Of the disk tier.
        disk_kv: Whether keys and values go to disk: `always` or `never`.
    Raises:
        ValueError: Listing every value that is not allowed.
    """

    mode: str = "kv"
    match: str = "contained"
    tau: float = 6.0
    topk: int = 8
    admit_after: int = 1
    audit_every: int = 0
    device_gib: float = 2.0
    host_gib: float = 8.0
    disk_gib: float = 0.0
    folder: str = ""
    disk_kv: str = "always"

    def __post_init__(self) -> None:
        words = {"mode": ("MODE", MODES), "match": ("MATCH", MATCHES), "disk_kv": ("DISK_KV", ("always", "never"))}
        problems = [
            f"{NODE}.{key} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
            for name, (key, allowed) in words.items()
            if getattr(self, name) not in allowed
        ]
        least = {"topk": 1, "admit_after": 1, "audit_every": 0, "tau": 0, "device_gib": 0, "host_gib": 0, "disk_gib": 0}
        problems += [
            f"{NODE}.{name.upper()} is {getattr(self, name)}; expected {minimum} or more"
            for name, minimum in least.items()
            if not getattr(self, name) >= minimum
        ]
        if self.disk_gib > 0 and not self.folder:
            problems.append(f"{NODE}.DISK_GIB is {self.disk_gib}, but {NODE}.DIR is empty; expected a folder")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, eq=False)
class Hit:
    """A background that may stand for the request's; in use until it is released (or its `with` block ends).

    Attributes:
        entry: Whose patches `entry.facts.patches` are the background of the answer.
        payload: Its tensors on the model's device; never to be changed in place.
        level: `kv` or `tokens`: what there is to use.
        tier: Where it was: `device`, `host` or `disk`.
        exact: Whether its pixels are those of the request.
        drift: Largest mean difference of a patch in grey levels; 0 if exact.
        audit: Whether the caller is asked to recompute and compare it.
        flops_saved: Floating-point operations; 0 if nobody says what they cost.
        release: Ends its use; only the first call counts.
    """

    entry: Entry
    payload: Payload
    level: str
    tier: str
    exact: bool
    drift: float
    audit: bool
    flops_saved: float
    release: Callable[[], None]

    def __enter__(self) -> Hit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


@dataclass(frozen=True)
class Miss:
    """Nothing may stand for the request's background; `reason` is one of `cache_match.REASONS`."""

    reason: str

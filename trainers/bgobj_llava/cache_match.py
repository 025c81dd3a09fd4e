"""Whether a stored background may stand for that of a request. Decided on the stored pixels, always."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache_entry import Facts
from trainers.bgobj_llava.cache_scene import Scene

MATCHES = ("contained", "identical", "approx")
MIN_COSINE = 0.996  # of approx: per patch

# Reasons of a miss.
BG_EMPTY, NO_CANDIDATE, OBJECT_INSIDE = "background empty", "no candidate", "object inside"
PIXELS_DIFFER, FINGERPRINT, DAMAGED = "pixels differ", "fingerprint", "damaged"
# If candidates fail for several reasons, the first of these is reported.
REASONS = (DAMAGED, PIXELS_DIFFER, OBJECT_INSIDE, FINGERPRINT, NO_CANDIDATE, BG_EMPTY)


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison.

    Attributes:
        reason: Why the entry must not be used; "" if it may.
        drift: Largest mean absolute difference of a patch, grey levels 0-255; 0 = bytes are equal.
    """

    reason: str = ""
    drift: float = 0.0

    @property
    def accepted(self) -> bool:
        return not self.reason


def rule_out(facts: Facts, scene: Scene, *, match: str) -> str:
    """Return why an entry cannot match exactly, judged without its pixels; "" if they have to be compared.

    Args:
        facts: Of the entry.
        scene: The request.
        match: `identical` also asks for the same patches, otherwise any that hold no object.
    """
    if len(facts.patches) != len(scene.raw) or (match == "identical" and not np.array_equal(facts.patches, scene.background)):
        return NO_CANDIDATE
    if bool((facts.patches & scene.raw).any()):
        return OBJECT_INSIDE
    return "" if scene.total(facts.index) == facts.total else PIXELS_DIFFER


def compare_exactly(facts: Facts, rows: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare an entry's pixels byte by byte.

    Args:
        facts: Of the entry, not ruled out.
        rows: Its stored pixels, (n_b, 3 * p * p).
        scene: The request.
    """
    return Verdict() if np.array_equal(scene.rows[facts.index], rows) else Verdict(PIXELS_DIFFER)


def compare_approximately(facts: Facts, rows: NDArray[np.uint8], scene: Scene, *, tau: float) -> Verdict:
    """Compare an entry's pixels within a tolerance.

    All patches must be within `tau`, or all must have a cosine of .996 or more. The latter forgives a change of brightness, by
    any amount: an approximate hit can be wrong, which is why it says so.

    Args:
        facts: Of the entry.
        rows: Its stored pixels, (n_b, 3 * p * p).
        scene: The request.
        tau: Largest mean absolute difference of a patch, grey levels 0-255.
    """
    if len(facts.patches) != len(scene.raw):
        return Verdict(NO_CANDIDATE)
    if bool((facts.patches & scene.raw).any()):
        return Verdict(OBJECT_INSIDE)
    if rows.shape[1] != scene.rows.shape[1]:
        return Verdict(PIXELS_DIFFER)
    now, then = (each.astype(np.float32) for each in (scene.rows[facts.index], rows))
    drift = float(np.abs(now - then).mean(axis=1).max())
    if drift <= tau or bool((_cosines(now, then) >= MIN_COSINE).all()):
        return Verdict(drift=drift)
    return Verdict(PIXELS_DIFFER)


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each pair of rows; black has one of 1 with black and of 0 with anything else."""
    norms = [np.linalg.norm(each, axis=1) for each in (left, right)]
    product = norms[0] * norms[1]
    both_black = (norms[0] == 0) & (norms[1] == 0)
    return np.where(both_black, 1.0, (left * right).sum(axis=1) / np.where(product > 0, product, 1.0))

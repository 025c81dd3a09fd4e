"""Whether a stored background may stand for that of a request. Decided on the stored pixels, always."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.bgobj_llava.cache.entry import Facts
from trainers.bgobj_llava.cache.scene import Scene

MATCHES = ("contained", "identical", "approx")
MIN_COSINE = 0.996  # of approx: per patch
FIRST_LOOK = 16  # of approx: every so many patches are compared before all are

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
    for step in (FIRST_LOOK, 1):  # most that differ do so in any few patches
        now, then = scene.rows[facts.index[::step]], rows[::step]
        drifts = _mean_differences(now, then)
        worst = int(drifts.argmax())
        if drifts[worst] > tau and not (_are_alike(now[worst : worst + 1], then[worst : worst + 1]) and _are_alike(now, then)):
            return Verdict(PIXELS_DIFFER)
    return Verdict(drift=float(drifts[worst]))


def _mean_differences(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean absolute difference of each pair of rows, grey levels; its sums are exact below 2^24."""
    differences = (np.maximum(now, then) - np.minimum(now, then)).astype(np.float32)
    return differences @ np.ones(then.shape[1], dtype=np.float32) / then.shape[1]


def _are_alike(now: NDArray[np.uint8], then: NDArray[np.uint8]) -> bool:
    """Whether each pair of rows has a cosine of .996; black has one of 1 with black and of 0 with anything else."""
    left, right = now.astype(np.float32), then.astype(np.float32)
    dots, *squares = (np.einsum("ij,ij->i", *pair) for pair in ((left, right), (left, left), (right, right)))
    product = np.sqrt(squares[0] * squares[1])
    cosines = np.where(product > 0, dots / np.where(product > 0, product, 1), squares[0] == squares[1])
    return bool((cosines >= MIN_COSINE).all())

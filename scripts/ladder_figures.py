"""What a table of paired results needs: intervals, a paired bootstrap, and how often answers changed."""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BOOTSTRAPS = 10_000
Z_95 = 1.959964  # two-sided 95 % of a normal distribution


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a `predictions.jsonl`."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def half_width(right: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean of zeros and ones, percent (normal approximation)."""
    share = float(np.mean(right))
    return 100 * Z_95 * math.sqrt(share * (1 - share) / len(right))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Compare two systems on the same questions.

    Args:
        ours, theirs: Score per question in [0, 1], in the same order.
        seed: Of the 10,000 bootstrap draws of questions.
    Returns:
        Mean difference and its 95 % interval, points of percent.
    """
    difference = 100 * (np.asarray(ours, float) - np.asarray(theirs, float))
    rng = np.random.default_rng(seed)
    draws = [difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def count_flips(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> int:
    """Count questions whose answer text differs; both lists hold the same questions in the same order.

    Raises:
        ValueError: If they do not.
    """
    keys = [[(row["impath"], row["question"]) for row in rows] for rows in (ours, theirs)]
    if keys[0] != keys[1]:
        raise ValueError("the two sets of predictions are not about the same questions")
    return sum(a["answer"] != b["answer"] for a, b in zip(ours, theirs, strict=True))


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and the sample deviation where there are several values."""
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"

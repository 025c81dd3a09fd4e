"""Slow, literal versions of the caption metrics, written from the papers' formulas to judge the fast ones by.

Texts are lists of tokens; `references[i]` belong to `candidates[i]`.
"""

from __future__ import annotations

import math
from functools import cache

Text = list[str]


def grams(text: Text, n: int) -> list[tuple[str, ...]]:
    """All n-grams in order, repeated ones too."""
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def cider_d(references: list[list[Text]], candidates: list[Text]) -> list[float]:
    """Equations 1-3 of the CIDEr paper with its D variant: clipping, and a Gaussian of the difference in length."""

    def weigh(text: Text, n: int) -> dict[tuple[str, ...], float]:
        found = grams(text, n)
        return {gram: found.count(gram) * idf(gram, n) for gram in set(found)}

    @cache
    def idf(gram: tuple[str, ...], n: int) -> float:
        images = sum(any(gram in grams(text, n) for text in texts) for texts in references)
        return math.log(len(references) / max(1, images))

    scores = []
    for texts, candidate in zip(references, candidates, strict=True):
        total = 0.0
        for text in texts:
            gaussian = math.exp(-((len(grams(candidate, 2)) - len(grams(text, 2))) ** 2) / (2 * 6**2))
            for n in range(1, 5):
                ours, theirs = weigh(candidate, n), weigh(text, n)
                dot = sum(min(weight, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, weight in ours.items())
                norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
                total += gaussian * dot / norms / 4 if norms else 0.0
        scores.append(10 * total / len(texts))
    return scores


def bleu(references: list[list[Text]], candidates: list[Text]) -> list[float]:
    """Modified n-gram precision with brevity penalty; matches + 1e-15, totals + 1e-9."""
    said = wanted = 0
    for texts, candidate in zip(references, candidates, strict=True):
        said += len(candidate)
        wanted += min((abs(len(text) - len(candidate)), len(text)) for text in texts)[1]
    penalty = min(1.0, math.exp(1 - (wanted + 1e-9) / (said + 1e-15)))
    precisions, scores = [], []
    for n in range(1, 5):
        matches = total = 0
        for texts, candidate in zip(references, candidates, strict=True):
            found = grams(candidate, n)
            total += len(found)
            matches += sum(min(found.count(gram), max(grams(text, n).count(gram) for text in texts)) for gram in set(found))
        precisions.append((matches + 1e-15) / (total + 1e-9))
        scores.append(penalty * math.prod(precisions) ** (1 / n))
    return scores


def sentence_bleu(references: list[list[Text]], candidates: list[Text]) -> list[float]:
    """BLEU of each candidate, of the n-gram lengths that it has; a length without match halves what the one before counted."""
    scores = []
    for texts, candidate in zip(references, candidates, strict=True):
        precisions, matched = [], 1.0
        for n in range(1, min(4, len(candidate)) + 1):
            found = grams(candidate, n)
            matches = sum(min(found.count(gram), max(grams(text, n).count(gram) for text in texts)) for gram in set(found))
            matched = matched if matches else matched / 2
            precisions.append((matches or matched) / len(found))
        shared = any(word in text for word in candidate for text in texts)
        if not shared:
            scores.append(0.0)
            continue
        wanted = min((abs(len(text) - len(candidate)), len(text)) for text in texts)[1]
        penalty = min(1.0, math.exp(1 - wanted / len(candidate)))
        scores.append(penalty * math.prod(precisions) ** (1 / len(precisions)))
    return scores


def longest_common(text: Text, other: Text) -> int:
    """The textbook recursion."""

    @cache
    def length(i: int, j: int) -> int:
        if i == len(text) or j == len(other):
            return 0
        return length(i + 1, j + 1) + 1 if text[i] == other[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def rouge_l(references: list[list[Text]], candidates: list[Text]) -> list[float]:
    """F-measure, beta 1.2, of the best precision and the best recall over the references."""
    scores = []
    for texts, candidate in zip(references, candidates, strict=True):
        common = [longest_common(candidate, text) for text in texts]
        if not any(common):
            scores.append(0.0)
            continue
        precision = max(common) / len(candidate)
        recall = max(length / len(text) for length, text in zip(common, texts, strict=True) if text)
        scores.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    return scores

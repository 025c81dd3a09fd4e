"""Slow, literal versions of the scores of short answers, written from their definitions to judge the fast ones by."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

MARKS = ";/[]\"{}()=+\\_-><@`,?!"
DIGITS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)], strict=True))


def normalise(text: str, contractions: dict[str, str]) -> str:
    """Letter by letter: a mark beside white space or at an end vanishes, any other becomes a space."""
    letters = f" {' '.join(text.lower().split())} "
    written = ""
    for place, letter in enumerate(letters):
        before, after = letters[:place].rstrip(MARKS)[-1:], letters[place:].lstrip(MARKS)[:1]
        if letter == "," and letters[place - 1].isdigit() and letters[place + 1].isdigit():
            continue
        if letter == "." and not letters[place + 1 : place + 2].isdigit():
            continue
        if letter in MARKS:
            run_starts = letters[place - 1] not in MARKS
            written += " " if run_starts and before != " " and after != " " else ""
        else:
            written += letter
    words = [str(DIGITS.get(word, word)) for word in written.split()]
    words = [contractions.get(word, word) for word in words if word not in ("a", "an", "the")]
    return " ".join(words) or " ".join(text.lower().split())


def leave_one_out(matches: list[bool]) -> Fraction:
    """Mean over all sets that lack one reference of min(1, matches / min(3, size of the set))."""
    if len(matches) == 1:
        return Fraction(matches[0])
    sets = list(combinations(matches, len(matches) - 1))
    return sum(min(Fraction(1), Fraction(sum(chosen), min(3, len(chosen)))) for chosen in sets) / len(sets)


def edits(text: str, other: str) -> int:
    """Levenshtein distance by its recursive definition."""
    if not text or not other:
        return len(text) + len(other)
    if text[0] == other[0]:
        return edits(text[1:], other[1:])
    return 1 + min(edits(text[1:], other), edits(text, other[1:]), edits(text[1:], other[1:]))


def f1(words: list[str], expected: list[str]) -> Fraction:
    """Harmonic mean of precision and recall, each word of the reference spent once."""
    left = list(expected)
    hits = 0
    for word in words:
        if word in left:
            left.remove(word)
            hits += 1
    if not hits:
        return Fraction(0)
    precision, recall = Fraction(hits, len(words)), Fraction(hits, len(expected))
    return 2 * precision * recall / (precision + recall)

"""How one short answer is compared with its references: normalisation, and scores in [0, 1].

The rules follow the official VQA evaluation (Antol et al., "VQA: Visual Question Answering", ICCV 2015), ANLS (Biten et al.,
"Scene Text Visual Question Answering", ICCV 2019) and ChartQA's relaxed accuracy (Masry et al., ACL Findings 2022).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}  # fmt: skip

# Contractions by the word before the apostrophe. Bare spellings that are words of their own (were, its, shed) are left alone.
_CONTRACTIONS = {
    "n't": "ai are ca could did do does had has have is might must need ought sha should was were wo would",
    "'ve": "could i might must should they we would you",
    "'ll": "how it somebody something that there they what where who why you",
    "'d": "he how it somebody something that there they where who why you",
    "'re": "they what where why you",
    "'s": "he here how somebody someone that there what when where who why",
    "'m": "i",
}
_SINGLE = {f"{stem}{end}" for end, stems in _CONTRACTIONS.items() for stem in stems.split()}
_SINGLE |= {"let's", "ma'am", "o'clock", "y'all"}
_DOUBLE = {f"{word}'ve" for word in _SINGLE if word.endswith(("n't", "'d"))}
APOSTROPHES = {word.replace("'", ""): word for word in sorted(_SINGLE | _DOUBLE)}

# Apostrophes, colons, currency and percent signs stay: "don't", "9:15", "5%".
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_MARKS_AT_EDGES = re.compile(r"(?:(?<=\s)|^)[;/\[\]\"{}()=+\\_\-><@`,?!]+|[;/\[\]\"{}()=+\\_\-><@`,?!]+(?=\s|$)")
_MARKS_INSIDE = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]+")
_PERIODS = re.compile(r"\.(?!\d)")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?")

RELAXED_TOLERANCE = 0.05  # of the reference's absolute value
ANLS_LIMIT = 0.5  # a normalised distance from here on counts as wrong


def normalise_answer(text: str) -> str:
    """Return an answer in the form in which answers are compared.

    Lower case; commas between digits and punctuation go (inside a word it becomes a space); number words up to ten become
    digits; articles go; contractions get their apostrophe. What would vanish altogether (`A`, `!`) stays as it is.
    """
    plain = " ".join(text.replace("\u2019", "'").lower().split())
    bare = _THOUSANDS.sub("", plain)
    bare = _PERIODS.sub("", _MARKS_INSIDE.sub(" ", _MARKS_AT_EDGES.sub("", bare)))
    words = [NUMBERS.get(word, word) for word in bare.split()]
    words = [APOSTROPHES.get(word.replace("'", ""), word) for word in words if word not in ARTICLES]
    return " ".join(words) or plain


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the normalised answer equals any normalised reference, else 0."""
    return float(normalise_answer(answer) in map(normalise_answer, references))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the mean over leave-one-out sets of min(1, matches / min(3, n - 1)); with one reference, the exact match.

    Ten references with 1, 2, 3, 4 matches give 0.3, 0.6, 0.9, 1.
    """
    count = len(references)
    if count == 1:
        return exact_match(answer, references)
    matches = sum(normalise_answer(answer) == normalise_answer(reference) for reference in references)
    needed = min(3, count - 1)
    with_match_left_out, with_other_left_out = min(1.0, (matches - 1) / needed), min(1.0, matches / needed)
    return (matches * with_match_left_out + (count - matches) * with_other_left_out) / count


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 between the words of the answer and those of a reference, normalised; repeated words count."""
    return max(_f1(normalise_answer(answer).split(), normalise_answer(reference).split()) for reference in references)


def _f1(words: list[str], expected: list[str]) -> float:
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected)) if shared else 0.0


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the best 1 - NL over the references where NL < 0.5, else 0; NL = edits / length of the longer text.

    As in ST-VQA, only case and white space are levelled: `hallo` for `hello` gives 0.8.
    """
    return max(_similarity(_level(answer), _level(reference)) for reference in references)


def _similarity(text: str, expected: str) -> float:
    distance = count_edits(text, expected) / max(len(text), len(expected), 1)
    return 1 - distance if distance < ANLS_LIMIT else 0.0


def count_edits(text: str, other: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and replacements of one character."""
    row = list(range(len(other) + 1))
    for line, letter in enumerate(text, 1):
        diagonal, row[0] = row[0], line
        for column, expected in enumerate(other, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != expected))
    return row[-1]


def relaxed_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is a number within 5 % of a reference that is one, or else matches a reference exactly."""
    value = read_number(answer)
    for reference in references:
        expected = read_number(reference)
        if value is None or expected is None:
            if normalise_answer(answer) == normalise_answer(reference):
                return 1.0
        elif abs(value - expected) <= RELAXED_TOLERANCE * abs(expected):
            return 1.0
    return 0.0


def read_number(text: str) -> float | None:
    """Return the number that a text is, as `-1,250.5` or `12 %` (0.12); None if it is none."""
    bare = text.strip().rstrip(".").lower()
    share = bare.endswith("%")
    bare = bare.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(bare):
        return None
    value = float(bare.replace(",", ""))
    return value / 100 if share else value


def yes_or_no(text: str) -> str:
    """Return `yes` or `no` if the first word of a text says so, else ""."""
    first = normalise_answer(text).split(" ")[0]
    return first if first in ("yes", "no") else ""


def _level(text: str) -> str:
    return " ".join(text.lower().split())

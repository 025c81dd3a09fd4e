"""Questions about a scene that have one right answer of one or two words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .scenes import Scene, SceneObject
from .sprites import SHAPES

QUESTION_TYPES: tuple[str, ...] = ("object", "colour", "count", "position", "clock", "background", "style")
HOURS: tuple[str, ...] = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
COUNTS: tuple[str, ...] = ("zero", "one", "two", "three")
KINDS: tuple[str, ...] = ("letter", "digit", "shape", "clock")
THIRDS: tuple[tuple[str, str, str], ...] = (("left", "middle", "right"), ("top", "middle", "bottom"))
SIDES: tuple[tuple[str, str], ...] = (("left", "right"), ("above", "below"))

# Shares of the picture's side below which a place is too close to call, and how much the longer way has to lead.
_SIDE_MARGIN, _THIRD_MARGIN, _LEAD = 0.10, 0.04, 1.5

PHRASINGS: dict[str, tuple[str, ...]] = {
    "only object": ("What is in the picture?", "Which object is shown?", "What does the picture show?"),
    "object": ("What is the {} object?", "Which object is {}?", "Name the {} object."),
    "object of a kind": ("Which {} is in the picture?", "What {} is shown?", "Name the {}."),
    "colour": ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}."),
    "count": ("How many objects are there?", "How many objects are in the picture?", "Count the objects."),
    "count of a kind": ("How many {}s are there?", "How many {}s are in the picture?", "Count the {}s."),
    "horizontal": ("Is the {} to the left or to the right of the {}?", "Is the {} left or right of the {}?"),
    "vertical": ("Is the {} above or below the {}?", "Is the {} placed above or below the {}?"),
    "side": ("Where is the {}, seen from the {}?", "On which side is the {}, seen from the {}?"),
    "left third": (
        "Is the {} in the left, the middle or the right third?",
        "Is the {} on the left, in the middle or on the right?",
    ),
    "top third": (
        "Is the {} in the top, the middle or the bottom third?",
        "Is the {} at the top, in the middle or at the bottom?",
    ),
    "clock": ("What hour does the clock show?", "Which hour is it?", "What is the hour on the clock?"),
    "background": (
        "What is the main colour of the background?",
        "Which colour covers most of the background?",
        "What colour is the background?",
    ),
    "style": ("What is the style of the background?", "Which style does the background have?", "Name the style."),
}


@dataclass(frozen=True)
class SceneQuestion:
    """One question about a scene.

    Attributes:
        question: One sentence.
        answer: One or two words.
        question_type: One of ``QUESTION_TYPES``.
        names_style: Whether question or answer names the background's style.
    """

    question: str
    answer: str
    question_type: str
    names_style: bool


@dataclass(frozen=True)
class _Fact:
    """Which phrasing asks for it, the words that fill the phrasing, and the answer."""

    phrasing: str
    words: tuple[str, ...]
    answer: str


def kind_of(name: str) -> str:
    """The kind of an object, one of ``KINDS``."""
    return "shape" if name in SHAPES else name.split()[0]


def scene_questions(scene: Scene, rng: np.random.Generator, *, per_type: int = 1) -> list[SceneQuestion]:
    """Ask about a scene.

    Args:
        scene: What is asked about; facts that could be read in two ways (two equal names, a place near a border) are
            left out.
        rng: Chooses facts and phrasings.
        per_type: Largest number of questions of each type; no two of them have one answer.
    Returns:
        Questions in the order of ``QUESTION_TYPES``; a type without an unambiguous fact is missing.
    """
    questions = []
    for question_type, facts in _facts(scene).items():
        by_answer: dict[str, list[_Fact]] = {}
        for fact in facts:
            by_answer.setdefault(fact.answer, []).append(fact)
        same_answer = list(by_answer.values())  # the answer is drawn first, or half of all counts would be zero
        for index in rng.permutation(len(same_answer))[:per_type]:
            fact = same_answer[int(index)][int(rng.integers(len(same_answer[int(index)])))]
            choices = PHRASINGS[fact.phrasing]
            text = choices[int(rng.integers(len(choices)))].format(*fact.words)
            questions.append(SceneQuestion(text, fact.answer, question_type, question_type == "style"))
    return questions


def _facts(scene: Scene) -> dict[str, list[_Fact]]:
    size_px = scene.image.shape[0]
    return {
        "object": _object_facts(scene.objects),
        "colour": _colour_facts(scene.objects),
        "count": _count_facts(scene.objects),
        "position": _third_facts(scene.objects, size_px) + _side_facts(scene.objects, size_px),
        "clock": _clock_facts(scene.objects),
        "background": [_Fact("background", (), scene.background.main_colour)],
        "style": [_Fact("style", (), scene.background.style)],
    }


def _object_facts(objects: Sequence[SceneObject]) -> list[_Fact]:
    if len(objects) == 1:
        return [_Fact("only object", (), objects[0].name)]
    colours = Counter(thing.colour for thing in objects)
    kinds = Counter(kind_of(thing.name) for thing in objects)
    facts = [_Fact("object", (thing.colour,), thing.name) for thing in objects if colours[thing.colour] == 1]
    for thing in objects:
        kind = kind_of(thing.name)
        if kinds[kind] == 1 and kind != thing.name:  # "Which clock?" would answer itself
            facts.append(_Fact("object of a kind", (kind,), thing.name))
    return facts


def _colour_facts(objects: Sequence[SceneObject]) -> list[_Fact]:
    return [_Fact("colour", (thing.name,), thing.colour) for thing in _with_own_name(objects)]


def _count_facts(objects: Sequence[SceneObject]) -> list[_Fact]:
    kinds = Counter(kind_of(thing.name) for thing in objects)
    of_kinds = [_Fact("count of a kind", (kind,), COUNTS[kinds[kind]]) for kind in KINDS]
    return [_Fact("count", (), COUNTS[len(objects)]), *of_kinds]


def _clock_facts(objects: Sequence[SceneObject]) -> list[_Fact]:
    times = [thing.time for thing in objects if thing.time is not None]
    return [_Fact("clock", (), HOURS[times[0][0] - 1])] if len(times) == 1 else []


def _third_facts(objects: Sequence[SceneObject], size_px: int) -> list[_Fact]:
    facts = []
    for thing in _with_own_name(objects):
        for phrasing, names, centre in zip(("left third", "top third"), THIRDS, _centre(thing, size_px), strict=True):
            if min(abs(centre - 1 / 3), abs(centre - 2 / 3)) >= _THIRD_MARGIN:
                facts.append(_Fact(phrasing, (thing.name,), names[int(centre * 3)]))
    return facts


def _side_facts(objects: Sequence[SceneObject], size_px: int) -> list[_Fact]:
    facts = []
    for first, second in permutations(_with_own_name(objects), 2):
        pairs = zip(_centre(first, size_px), _centre(second, size_px), strict=True)
        ways = [here - there for here, there in pairs]  # right and down are positive
        answers = [names[int(way > 0)] for names, way in zip(SIDES, ways, strict=True)]
        names = first.name, second.name
        for phrasing, way, answer in zip(("horizontal", "vertical"), ways, answers, strict=True):
            if abs(way) >= _SIDE_MARGIN:
                facts.append(_Fact(phrasing, names, answer))
        longer = int(abs(ways[1]) > abs(ways[0]))
        if abs(ways[longer]) >= max(_SIDE_MARGIN, _LEAD * abs(ways[1 - longer])):
            facts.append(_Fact("side", names, answers[longer]))
    return facts


def _with_own_name(objects: Sequence[SceneObject]) -> list[SceneObject]:
    names = Counter(thing.name for thing in objects)
    return [thing for thing in objects if names[thing.name] == 1]


def _centre(thing: SceneObject, size_px: int) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2 / size_px, (y0 + y1) / 2 / size_px

"""The right answer to a question about a scene, from boxes, colours and times alone: written apart from the generator."""

import re
from types import SimpleNamespace

from datasets.mini_scenes_generator import LETTERS, NUMERALS, OBJECT_NAMES, SHAPES, split_words

HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
COUNTS = "zero one two three".split()
KINDS = {
    "shape": set(SHAPES),
    "clock": {"clock"},
    "letter": {f"letter {letter.lower()}" for letter in LETTERS},
    "digit": {f"digit {numeral}" for numeral in NUMERALS},
}
SIDE_PX = 96


def objects_of(record):
    """The objects of a stored scene, as the rules read them."""
    return [SimpleNamespace(**{"time": None, **thing}) for thing in record["objects"]]


def the_only(things, fits):
    found = [thing for thing in things if fits(thing)]
    assert len(found) == 1, "the question has more than one right answer, or none"
    return found[0]


def answer_by_rule(text, question_type, things, *, style, main_colour):
    """Answer a question by reading its words.

    Args:
        text: The question.
        question_type: Its type.
        things: Objects with name, colour, box in a picture of 96 px, and time.
        style, main_colour: Of the background.
    """
    named = re.findall("|".join(sorted(OBJECT_NAMES, key=len, reverse=True)), text)
    kind = next((kind for kind in KINDS if re.search(rf"\b{kind}s?\b", text)), None)
    if question_type == "style":
        return style
    if question_type == "background":
        return main_colour
    if question_type == "clock":
        return HOURS[the_only(things, lambda thing: thing.name == "clock").time[0] - 1]
    if question_type == "colour":
        return the_only(things, lambda thing: thing.name == named[0]).colour
    if question_type == "count":
        return COUNTS[sum(kind is None or thing.name in KINDS[kind] for thing in things)]
    if question_type == "object":
        colour = next((word for word in split_words(text) if word in {thing.colour for thing in things}), None)
        return the_only(things, lambda t: (not colour or t.colour == colour) and (not kind or t.name in KINDS[kind])).name
    return _position([_centre(the_only(things, lambda t, name=name: t.name == name)) for name in named], text)


def _centre(thing):
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2 / SIDE_PX, (y0 + y1) / 2 / SIDE_PX


def _position(places, text):
    if len(places) == 1:
        axis = int("bottom" in text)
        return (("left", "middle", "right"), ("top", "middle", "bottom"))[axis][int(places[0][axis] * 3)]
    dx, dy = (here - there for here, there in zip(*places, strict=True))
    if "left" in text or ("above" not in text and abs(dx) > abs(dy)):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"

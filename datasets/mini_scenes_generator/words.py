"""Every word that the miniature world can say: what a word-level tokenizer is built from."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from .backgrounds import COLOURS, STYLES
from .captions import caption_scene
from .questions import COUNTS, HOURS, KINDS, PHRASINGS, SIDES, THIRDS
from .sentences import BACKGROUND_PHRASINGS, OBJECT_PHRASINGS
from .sprites import LETTERS, NUMERALS, SHAPES

OBJECT_NAMES: tuple[str, ...] = (
    *SHAPES,
    "clock",
    *(f"digit {numeral}" for numeral in NUMERALS),
    *(f"letter {letter.lower()}" for letter in LETTERS),
)
_FIELD = re.compile(r"\{\w*\}")


def split_words(text: str) -> list[str]:
    """Split a text into its words and marks; nothing but white space is lost."""
    return re.findall(r"\w+|[^\w\s]", text)


def all_words() -> list[str]:
    """Every word and mark of questions, answers, captions and sentences, as they are written there, sorted."""
    kinds = (word for kind in KINDS for word in (kind, f"{kind}s"))
    phrasings = (text for choices in PHRASINGS.values() for text in choices)
    texts = (
        *phrasings,
        *BACKGROUND_PHRASINGS,
        *OBJECT_PHRASINGS,
        *_captions(),
        *kinds,
        *OBJECT_NAMES,
        *COLOURS,
        *STYLES,
        *HOURS,
        *COUNTS,
        *(name for axis in (*THIRDS, *SIDES) for name in axis),
        "a an . , ?",
    )
    return sorted({word for text in texts for word in split_words(_FIELD.sub(" ", text))})


def _captions() -> Iterable[str]:
    """Captions of one to three objects in all four relations."""
    rng = np.random.default_rng(0)
    middle = (10, 10, 20, 20)
    places = ((0, 10, 10, 20), (20, 10, 30, 20), (10, 0, 20, 10), (10, 20, 20, 30))
    for place in places:
        boxes = (middle, place, place)
        for count in (1, 2, 3):
            for _ in range(8):
                things = [("star", "red", box) for box in boxes[:count]]
                yield from caption_scene(things, "striped", "red", rng)

"""One sentence about the background and one about the objects of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backgrounds import STYLES
from .captions import join_phrases, object_phrase, with_article
from .scenes import Scene

BACKGROUND_PHRASINGS: tuple[str, ...] = (
    "the background is mostly {main} with some {second}",
    "behind everything there is {a_main} background",
    "the background is {style}, {main} and {second}",
    "everything lies on {a_style} background, mostly {main}",
)
OBJECT_PHRASINGS: tuple[str, ...] = ("the picture shows {}", "in front there is {}", "one can see {}")


@dataclass(frozen=True)
class SceneSentence:
    """One sentence, and whether it names the background's style."""

    text: str
    names_style: bool


def names_style(text: str) -> bool:
    """Tell whether a text contains the name of a style."""
    return any(style in text.lower() for style in STYLES)


def background_sentence(scene: Scene, rng: np.random.Generator) -> SceneSentence:
    """Describe the background alone; half of the phrasings name its style."""
    background = scene.background
    phrasing = BACKGROUND_PHRASINGS[int(rng.integers(len(BACKGROUND_PHRASINGS)))]
    text = phrasing.format(
        main=background.main_colour,
        second=background.second_colour,
        style=background.style,
        a_main=with_article(background.main_colour),
        a_style=with_article(background.style),
    )
    return SceneSentence(f"{text}.", names_style(text))


def object_sentence(scene: Scene, rng: np.random.Generator) -> SceneSentence:
    """Describe the objects alone, in random order; it never names a style."""
    order = [scene.objects[index] for index in rng.permutation(len(scene.objects))]
    phrases = join_phrases([object_phrase(thing.name, thing.colour) for thing in order])
    text = OBJECT_PHRASINGS[int(rng.integers(len(OBJECT_PHRASINGS)))].format(phrases)
    return SceneSentence(f"{text}.", names_style(text))

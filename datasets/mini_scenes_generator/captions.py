"""The caption grammar of the miniature world: one sentence, one full stop, plain words."""

from __future__ import annotations

import numpy as np

COUNT_WORDS = ("no", "one", "two", "three")


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def object_phrase(name: str, colour: str) -> str:
    """Name an object with its colour, such as ``an orange digit three``."""
    return with_article(f"{colour} {name}")


def join_phrases(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _relation(first_box: tuple[int, int, int, int], second_box: tuple[int, int, int, int]) -> str:
    dx = (second_box[0] + second_box[2]) - (first_box[0] + first_box[2])
    dy = (second_box[1] + second_box[3]) - (first_box[1] + first_box[3])
    if abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def caption_scene(
    objects: list[tuple[str, str, tuple[int, int, int, int]]], style: str, main_colour: str, rng: np.random.Generator
) -> list[str]:
    """Describe a scene in six sentences.

    Args:
        objects: Name, colour and xyxy box in pixels of each object.
        style: Style of the background.
        main_colour: Main colour of the background.
        rng: Chooses the order in which objects are named.
    Returns:
        Six captions; each ends in its only full stop. The third and later ones may leave objects or background out.
    """
    order = [objects[k] for k in rng.permutation(len(objects))]
    everything = join_phrases([object_phrase(name, colour) for name, colour, _ in order])
    names = join_phrases([with_article(name) for name, _, _ in order])
    count = COUNT_WORDS[len(order)]
    plural = "" if len(order) == 1 else "s"
    sentences = [
        f"{everything} on {with_article(style)} background",
        f"a photo of {everything}",
        f"{names} on {with_article(f'{main_colour} {style}')} background",
        f"a picture of {count} object{plural}, {everything}",
        f"there is {names} in this picture",
    ]
    if len(order) > 1:
        (name_a, colour_a, box_a), (name_b, colour_b, box_b) = order[:2]
        first, second = object_phrase(name_a, colour_a), object_phrase(name_b, colour_b)
        sentences.append(f"{first} {_relation(box_a, box_b)} {second}")
    else:
        sentences.append(f"{with_article(style)} {main_colour} background behind {everything}")
    return [f"{sentence}." for sentence in sentences]

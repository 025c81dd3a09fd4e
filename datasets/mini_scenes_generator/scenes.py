"""Scenes: one to three coloured sprites on a background, with boxes, masks and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .backgrounds import COLOURS, Background, draw_background, random_background
from .captions import caption_scene
from .sprites import Sprite, random_sprite

Box = tuple[int, int, int, int]  # pixels, (x0, y0, x1, y1), upper bounds exclusive
SpriteSource = Callable[[np.random.Generator, int], Sprite]
_PLACE_ATTEMPTS = 20


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        name: Its name in the vocabulary, such as ``circle`` or ``digit three``.
        colour: A key of ``COLOURS``.
        box: The sprite's extent.
        mask: Pixels the sprite touches, (H, W), bool.
        time: What a clock shows, (hour 1 to 12, minute 0 to 59); None for anything else.
    """

    name: str
    colour: str
    box: Box
    mask: np.ndarray
    time: tuple[int, int] | None = None


@dataclass(frozen=True)
class Placement:
    """A sprite, its colour and the box that it fills."""

    sprite: Sprite
    colour: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A picture and all that is true of it: RGB image (H, W, 3) uint8, background, objects, captions."""

    image: np.ndarray
    background: Background
    objects: tuple[SceneObject, ...]
    captions: tuple[str, ...]


def _overlaps(box: Box, others: list[Box]) -> bool:
    x0, y0, x1, y1 = box
    return any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in others)


def find_place(rng: np.random.Generator, height: int, width: int, size_px: int, taken: list[Box]) -> Box | None:
    """Draw a box of a size that overlaps none of the taken ones; None if a few attempts find no place."""
    for _ in range(_PLACE_ATTEMPTS):
        x0 = int(rng.integers(2, size_px - width - 1))
        y0 = int(rng.integers(2, size_px - height - 1))
        box = (x0, y0, x0 + width, y0 + height)
        if not _overlaps(box, taken):
            return box
    return None


def _paint(image: np.ndarray, sprite: np.ndarray, box: Box, colour: str) -> np.ndarray:
    x0, y0, x1, y1 = box
    window = image[y0:y1, x0:x1].astype(np.float32)
    paint = np.asarray(COLOURS[colour], np.float32)
    image[y0:y1, x0:x1] = np.round(window + sprite[..., None] * (paint - window)).astype(np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[y0:y1, x0:x1] = sprite > 0
    return mask


def generate_scene(
    rng: np.random.Generator,
    *,
    sprite_source: SpriteSource = random_sprite,
    background: Background | None = None,
    size_px: int = 96,
) -> Scene:
    """Compose a scene.

    Args:
        rng: Source of all randomness.
        sprite_source: Gives a sprite of a height in pixels; the default draws printed things only.
        background: What to paint first; None draws one.
        size_px: Side of the picture in pixels.
    Returns:
        The scene; it has one to three objects, whose boxes do not overlap and whose colours differ from the
        background's two.
    """
    background = background or random_background(rng)
    colours = free_colours(background)
    placed: list[Placement] = []
    for _ in range(int(rng.integers(1, 4))):
        height = int(rng.integers(size_px * 3 // 10, size_px * 45 // 100))
        sprite = sprite_source(rng, height)
        box = find_place(rng, *sprite.coverage.shape, size_px, [other.box for other in placed])
        colour = str(rng.choice(colours))
        if box is not None:
            placed.append(Placement(sprite, colour, box))
    return compose_scene(background, placed, rng, size_px=size_px)


def free_colours(background: Background) -> list[str]:
    """The colours that differ from both of a background's."""
    return [name for name in COLOURS if name not in (background.main_colour, background.second_colour)]


def compose_scene(background: Background, placed: Sequence[Placement], rng: np.random.Generator, *, size_px: int = 96) -> Scene:
    """Paint a background and the sprites on it, and caption the result.

    Args:
        background: What to paint first.
        placed: What to paint on it, in this order.
        rng: Chooses the words of the captions.
        size_px: Side of the picture in pixels.
    """
    image = draw_background(background, size_px)
    objects: list[SceneObject] = []
    for thing in placed:
        mask = _paint(image, thing.sprite.coverage, thing.box, thing.colour)
        objects.append(SceneObject(thing.sprite.name, thing.colour, thing.box, mask, thing.sprite.time))
    facts = [(thing.name, thing.colour, thing.box) for thing in objects]
    captions = caption_scene(facts, background.style, background.main_colour, rng)
    return Scene(image=image, background=background, objects=tuple(objects), captions=tuple(captions))

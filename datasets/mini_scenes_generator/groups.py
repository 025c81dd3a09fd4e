"""Groups of scenes on one background: what a background cache has to take for the same, and what not.

The four scenes of a group, by role:

* ``base``: one or two objects on a background.
* ``exchanged``: the first object makes way for another inside its box, such as the same clock an hour later. All pixels
  outside the boxes are equal.
* ``moved``: the first object stands elsewhere. All pixels outside the boxes of both scenes are equal, but the object now
  covers what was background.
* ``false_friend``: the objects of the base on a background that differs in a few cells, far from every box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .backgrounds import N_CELLS, Background, random_background
from .scenes import Box, Placement, Scene, SpriteSource, compose_scene, find_place, free_colours
from .sprites import Sprite, draw_clock
from .world import world_sprites

ROLES: tuple[str, ...] = ("base", "exchanged", "moved", "false_friend")

# Shares of the picture's side. A cache leaves out the patches around an object; a change must lie beyond them.
_FAR, _MOVE = 0.2, 0.35
_LEVELS = (2, 6, 20, 60)  # from hardly to clearly visible
_CLOCK_SHARE = 0.4
_ATTEMPTS = 20


def scene_group(
    rng: np.random.Generator,
    *,
    sprite_source: SpriteSource | None = None,
    background: Background | None = None,
    size_px: int = 96,
) -> dict[str, Scene]:
    """Draw a group.

    Args:
        rng: Source of all randomness.
        sprite_source: Gives the objects; None draws printed things.
        background: Of the whole group; None draws one.
        size_px: Side of the pictures in pixels, such as 96 or 336.
    Returns:
        One scene for each of ``ROLES``, in this order. Equal generators give equal groups.
    """
    source = sprite_source or world_sprites()
    background = background or random_background(rng)
    while True:
        base = _place_objects(rng, source, background, size_px)
        exchanged = _exchange(rng, source, base, background)
        moved = _move(rng, base, size_px)
        changed = _change_background(rng, base, background, size_px)
        if exchanged and moved and changed:
            break
    plans = ((base, background), (exchanged, background), (moved, background), (base, changed))
    scenes = [compose_scene(ground, things, rng, size_px=size_px) for things, ground in plans]
    return dict(zip(ROLES, scenes, strict=True))


def _place_objects(rng: np.random.Generator, source: SpriteSource, background: Background, size_px: int) -> list[Placement]:
    colours = free_colours(background)
    placed: list[Placement] = []
    for number in range(int(rng.integers(1, 3))):
        height = int(rng.integers(size_px * 3 // 10, size_px * 4 // 10))
        sprite = source(rng, height)
        if number == 0 and rng.random() < _CLOCK_SHARE:
            sprite = _clock(int(rng.integers(1, 13)), height)
        box = find_place(rng, *sprite.coverage.shape, size_px, [other.box for other in placed])
        if box is not None:
            placed.append(Placement(sprite, str(rng.choice(colours)), box))
    return placed


def _clock(hour: int, size_px: int) -> Sprite:
    return Sprite("clock", draw_clock(hour, 0, size_px), (hour, 0))


def _exchange(
    rng: np.random.Generator, source: SpriteSource, base: Sequence[Placement], background: Background
) -> list[Placement] | None:
    """Put another object into the first one's box; None if no other fits."""
    first, *others = base
    x0, y0, x1, y1 = first.box
    if first.sprite.time is not None:
        return [replace(first, sprite=_clock(first.sprite.time[0] % 12 + 1, y1 - y0)), *others]
    for _ in range(_ATTEMPTS):
        sprite = source(rng, y1 - y0)
        width = sprite.coverage.shape[1]
        if sprite.name != first.sprite.name and width <= x1 - x0:
            left = x0 + (x1 - x0 - width) // 2
            colour = first.colour if rng.random() < 0.5 else str(rng.choice(free_colours(background)))
            return [Placement(sprite, colour, (left, y0, left + width, y1)), *others]
    return None


def _move(rng: np.random.Generator, base: Sequence[Placement], size_px: int) -> list[Placement] | None:
    """Put the first object elsewhere; None if there is no room."""
    first, *others = base
    for _ in range(_ATTEMPTS):
        box = find_place(rng, *first.sprite.coverage.shape, size_px, [thing.box for thing in base])
        if box and max(abs(new - old) for new, old in zip(box, first.box, strict=True)) >= _MOVE * size_px:
            return [replace(first, box=box), *others]
    return None


def _change_background(
    rng: np.random.Generator, base: Sequence[Placement], background: Background, size_px: int
) -> Background | None:
    """Add or subtract a few grey levels in one to four cells; None if none lies far from every box."""
    boxes = [thing.box for thing in base]
    cells = [(row, column) for row in range(N_CELLS) for column in range(N_CELLS)]
    far = [cell for cell in cells if all(_gap(cell, box, size_px) >= _FAR * size_px for box in boxes)]
    if len(far) < 4:
        return None
    chosen = rng.choice(len(far), size=int(rng.integers(1, 5)), replace=False)
    level = int(rng.choice(_LEVELS))
    changes = tuple((*far[int(index)], level if rng.random() < 0.5 else -level) for index in chosen)
    return replace(background, changes=changes)


def _gap(cell: tuple[int, int], box: Box, size_px: int) -> float:
    """Pixels between a cell and a box, along the axis on which they are further apart."""
    side = size_px / N_CELLS
    (row, column), (x0, y0, x1, y1) = cell, box
    across = max(x0 - (column + 1) * side, column * side - x1)
    down = max(y0 - (row + 1) * side, row * side - y1)
    return max(across, down)

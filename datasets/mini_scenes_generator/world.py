"""Whole samples of the miniature world: a scene with its questions and sentences, in any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backgrounds import Background
from .questions import SceneQuestion, scene_questions
from .scenes import Scene, SpriteSource, generate_scene
from .sentences import SceneSentence, background_sentence, object_sentence
from .sprites import FACES, LETTERS, NUMERALS, SHAPES, Sprite, draw_shape, printed_sprite, random_clock

# Clocks are more frequent than in the pictures that tiny12 saw: each of them is twelve answers.
KIND_SHARES: dict[str, float] = {"shape": 0.36, "letter": 0.2, "digit": 0.26, "clock": 0.18}
_INK = 0.12  # coverage below which a scanned stroke counts as paper


@dataclass(frozen=True)
class WorldScene:
    """A scene (with its captions) and what else is said of it."""

    scene: Scene
    questions: tuple[SceneQuestion, ...]
    background_sentence: SceneSentence
    object_sentence: SceneSentence


def training_scene(
    rng: np.random.Generator,
    *,
    sprite_source: SpriteSource | None = None,
    background: Background | None = None,
    size_px: int = 96,
    per_type: int = 1,
) -> WorldScene:
    """Draw a scene and ask about it; call it with one generator for as many scenes as are needed.

    Args:
        rng: Source of all randomness.
        sprite_source: See ``generate_scene``; None draws printed things, clocks more often than ``random_sprite``.
        background: What to paint first; None draws one.
        size_px: Side of the picture in pixels.
        per_type: Largest number of questions of each type.
    """
    scene = generate_scene(rng, sprite_source=sprite_source or world_sprites(), background=background, size_px=size_px)
    return describe_scene(scene, rng, per_type=per_type)


def describe_scene(scene: Scene, rng: np.random.Generator, *, per_type: int = 1) -> WorldScene:
    """Add questions and sentences to a scene."""
    questions = tuple(scene_questions(scene, rng, per_type=per_type))
    return WorldScene(scene, questions, background_sentence(scene, rng), object_sentence(scene, rng))


def world_sprites(handwriting: Mapping[str, Sequence[np.ndarray]] | None = None) -> SpriteSource:
    """Return the source of the world's objects: shapes, printed letters, digits and clocks.

    Args:
        handwriting: Pictures of each numeral (keys of ``NUMERALS``), each (h, w) uint8, ink bright on black; None prints
            the digits as well.
    """

    def draw(rng: np.random.Generator, size_px: int) -> Sprite:
        kind = rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values()))
        if kind == "shape":
            name = str(rng.choice(SHAPES))
            return Sprite(name, draw_shape(name, size_px))
        if kind == "clock":
            return random_clock(rng, size_px)
        if kind == "letter":
            letter = str(rng.choice(LETTERS))
            return Sprite(f"letter {letter.lower()}", printed_sprite(letter, str(rng.choice(FACES)), size_px))
        numeral = str(rng.choice(NUMERALS))
        if handwriting is None:
            coverage = printed_sprite(str(NUMERALS.index(numeral)), str(rng.choice(FACES)), size_px)
        else:
            written = handwriting[numeral]
            coverage = handwritten_sprite(written[int(rng.integers(len(written)))], size_px)
        return Sprite(f"digit {numeral}", coverage)

    return draw


def handwritten_sprite(picture: np.ndarray, size_px: int) -> np.ndarray:
    """Crop a picture of a digit to its ink and bring the ink to a height.

    Args:
        picture: (h, w) uint8, ink bright on black.
        size_px: Height of the ink in pixels.
    Returns:
        Coverage, (size_px, w), float32 in [0, 1].
    """
    inked = picture > _INK * 255
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    ink = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    width = max(2, round(ink.width * size_px / ink.height))
    coverage = np.asarray(ink.resize((width, size_px), Image.Resampling.BICUBIC), np.float32) / 255
    return np.clip((coverage - _INK) / (0.8 - _INK), 0.0, 1.0)

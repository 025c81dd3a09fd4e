"""Sprites: shapes, printed letters and digits, and clock faces as grey masks that scenes colour and place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

NUMERALS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "diamond",
    "cross",
    "ring",
    "heart",
    "arrow",
    "crescent",
)
# The text faces among the fonts that matplotlib ships; the others there hold symbols only.
FACES: tuple[str, ...] = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{family}10" for family in ("b", "mi", "r", "ss", "tt")),  # not cmti10: matplotlib before 3.11 lacks it
)
_OVERSAMPLE = 4


@dataclass(frozen=True)
class Sprite:
    """A thing that a scene can colour and place.

    Attributes:
        name: Its name in ``clip_ext/texts/vocabularies/mini_scenes.json``.
        coverage: (H, W), float32 in [0, 1].
        time: What a clock shows, (hour 1 to 12, minute 0 to 59); None for anything else.
    """

    name: str
    coverage: np.ndarray
    time: tuple[int, int] | None = None


def face_paths() -> dict[str, Path]:
    """Font files of ``FACES`` inside the installed matplotlib, by face name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return {face: folder / f"{face}.ttf" for face in FACES}


@lru_cache(maxsize=None)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(face_paths()[face]), size)


@lru_cache(maxsize=4096)
def printed_sprite(character: str, face: str, size_px: int) -> np.ndarray:
    """Render one character, cropped to its ink.

    Args:
        character: A single letter or digit.
        face: One of ``FACES``.
        size_px: Height of the ink in pixels.
    Returns:
        Coverage, (size_px, w), float32 in [0, 1]; read-only, because results are shared.
    """
    big = size_px * _OVERSAMPLE
    canvas = Image.new("L", (big * 3, big * 3))
    ImageDraw.Draw(canvas).text((big, big // 2), character, font=_font(face, big), fill=255)
    ink = canvas.crop(canvas.getbbox())
    width = max(2, round(ink.width * size_px / ink.height))
    mask = np.asarray(ink.resize((width, size_px), Image.Resampling.BOX), np.float32) / 255
    mask.setflags(write=False)
    return mask


def _polygon(draw: ImageDraw.ImageDraw, side: int, points: list[tuple[float, float]]) -> None:
    draw.polygon([(x * side, y * side) for x, y in points], fill=255)


def _star_points() -> list[tuple[float, float]]:
    radii = (0.5, 0.2)
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    return [(0.5 + radii[k % 2] * math.cos(a), 0.52 + radii[k % 2] * math.sin(a)) for k, a in enumerate(angles)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)],
    "triangle": [(0.5, 0.04), (0.98, 0.94), (0.02, 0.94)],
    "star": _star_points(),
    "diamond": [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)],
    "arrow": [(0, 0.35), (0.55, 0.35), (0.55, 0.1), (1, 0.5), (0.55, 0.9), (0.55, 0.65), (0, 0.65)],
}


def draw_shape(name: str, size_px: int) -> np.ndarray:
    """Draw a filled shape.

    Args:
        name: One of ``SHAPES``.
        size_px: Side of the square mask in pixels.
    Returns:
        Coverage, (size_px, size_px), float32 in [0, 1].
    Raises:
        ValueError: If the name is unknown (lists the known ones).
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; expected one of {', '.join(SHAPES)}")
    side = size_px * _OVERSAMPLE
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    if name in _POLYGONS:
        _polygon(draw, side, _POLYGONS[name])
    elif name == "cross":
        draw.rectangle((0.36 * side, 0, 0.64 * side, side), fill=255)
        draw.rectangle((0, 0.36 * side, side, 0.64 * side), fill=255)
    elif name == "heart":
        draw.ellipse((0.02 * side, 0.08 * side, 0.52 * side, 0.56 * side), fill=255)
        draw.ellipse((0.48 * side, 0.08 * side, 0.98 * side, 0.56 * side), fill=255)
        _polygon(draw, side, [(0.06, 0.44), (0.94, 0.44), (0.5, 0.98)])
    else:
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if name == "ring":
            draw.ellipse((0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side), fill=0)
        elif name == "crescent":
            draw.ellipse((0.3 * side, -0.02 * side, 1.15 * side, 0.85 * side), fill=0)
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX), np.float32) / 255


def draw_clock(hour: int, minute: int, size_px: int) -> np.ndarray:
    """Draw a clock face with two hands.

    Args:
        hour: 1 to 12.
        minute: 0 to 59; moves both hands.
        size_px: Side of the square mask in pixels.
    Returns:
        Coverage, (size_px, size_px), float32 in [0, 1]: rim and hands 1, face 0.25.
    """
    side = size_px * _OVERSAMPLE
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    draw.ellipse((0.08 * side, 0.08 * side, 0.92 * side, 0.92 * side), fill=64)
    for turn, length, width in (((hour % 12 + minute / 60) / 12, 0.24, 0.09), (minute / 60, 0.38, 0.05)):
        angle = 2 * math.pi * turn
        tip = (side * (0.5 + length * math.sin(angle)), side * (0.5 - length * math.cos(angle)))
        draw.line([(side / 2, side / 2), tip], fill=255, width=max(1, round(width * side)))
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX), np.float32) / 255


def random_clock(rng: np.random.Generator, size_px: int) -> Sprite:
    """Draw a clock at a random quarter of an hour, (size_px, size_px)."""
    time = int(rng.integers(1, 13)), int(rng.choice((0, 15, 30, 45)))
    return Sprite("clock", draw_clock(*time, size_px), time)


def random_sprite(rng: np.random.Generator, size_px: int) -> Sprite:
    """Draw a random printed object.

    Args:
        rng: Source of randomness.
        size_px: Height of the sprite in pixels.
    Returns:
        The object; its coverage is (size_px, w).
    """
    kind = rng.choice(("shape", "letter", "digit", "clock"), p=(0.4, 0.2, 0.3, 0.1))
    if kind == "shape":
        name = str(rng.choice(SHAPES))
        return Sprite(name, draw_shape(name, size_px))
    if kind == "clock":
        return random_clock(rng, size_px)
    face = str(rng.choice(FACES))
    if kind == "letter":
        letter = str(rng.choice(LETTERS))
        return Sprite(f"letter {letter.lower()}", printed_sprite(letter, face, size_px))
    digit = int(rng.integers(10))
    return Sprite(f"digit {NUMERALS[digit]}", printed_sprite(str(digit), face, size_px))

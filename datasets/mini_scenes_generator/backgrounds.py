"""Procedural textures: six styles with four variants each, in any pair of named colours.

A background is a small record; drawing it is a pure function of the record, so that scenes which share a record
share every background pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 45, 40),
    "green": (50, 150, 65),
    "blue": (45, 85, 195),
    "yellow": (230, 205, 60),
    "orange": (235, 135, 40),
    "purple": (125, 60, 160),
    "pink": (235, 150, 185),
    "brown": (120, 80, 50),
    "white": (242, 242, 238),
    "black": (22, 22, 26),
    "grey": (135, 135, 140),
}
N_VARIANTS = 4
N_CELLS = 12  # of a side; a cell is what a change of a background is made of


@dataclass(frozen=True)
class Background:
    """One texture.

    Attributes:
        style: One of ``STYLES``.
        main_colour: Name of the colour that covers most pixels, a key of ``COLOURS``.
        second_colour: Name of the pattern's colour, a key of ``COLOURS``.
        variant: Layout of the pattern, 0 to 3.
        seed: Seed of the pattern's phase and noise.
        changes: Cells that differ from the texture: (row, column, grey levels added), rows and columns below ``N_CELLS``.
    """

    style: str
    main_colour: str
    second_colour: str
    variant: int
    seed: int
    changes: tuple[tuple[int, int, int], ...] = ()

    @property
    def texture(self) -> str:
        """Style, variant and colours: what two backgrounds of different seeds may share."""
        return f"{self.style}-{self.variant}-{self.main_colour}-{self.second_colour}"

    @property
    def background_id(self) -> str:
        """A name that is equal exactly when the drawn pixels are equal."""
        # Of a gradient the seed decides nothing but the direction, so that many seeds draw the same pixels.
        phase = int(_runs_forwards(np.random.default_rng(self.seed))) if self.style == "gradient" else self.seed
        changes = f"-{crc32(repr(self.changes).encode()):08x}" if self.changes else ""
        return f"{self.texture}-{phase}{changes}"


Grid = tuple[np.ndarray, np.ndarray]


def _striped(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, y = grid
    across = (x, y, (x + y) * 0.7071, (x - y) * 0.7071)[variant]
    return ((across * rng.uniform(5, 9) + rng.random()) % 1.0 < 0.36).astype(np.float32)


def _checkered(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, y = grid
    n_cells = (4, 6, 8, 10)[variant]
    column = np.floor(x * n_cells + rng.random())
    row = np.floor(y * n_cells + rng.random())
    # 0.8 keeps one colour the main one although both cover half of the squares.
    return ((column + row) % 2).astype(np.float32) * 0.8


def _dotted(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, y = grid
    n_cells = (4, 6, 8, 6)[variant]
    shift = 0.5 * (np.floor(y * n_cells) % 2) if variant == 3 else 0.0
    u = (x * n_cells + shift + rng.random()) % 1.0 - 0.5
    v = (y * n_cells) % 1.0 - 0.5
    return (u * u + v * v < 0.085).astype(np.float32)


def _brushed(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, _ = grid
    size = x.shape[0]
    noise = rng.random((size, size)).astype(np.float32)
    length = (9, 9, 21, 21)[variant]
    kernel = np.ones(length, np.float32) / length
    axis = variant % 2
    padded = np.apply_along_axis(lambda line: np.convolve(np.r_[line, line, line], kernel, "same"), axis, noise)
    middle = [slice(None), slice(None)]
    middle[axis] = slice(size, 2 * size)
    streaks = padded[tuple(middle)]
    return np.clip((streaks - streaks.mean()) / (4 * streaks.std()) + 0.3, 0.0, 0.75).astype(np.float32)


def _woodcut(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, y = grid
    centre_x, centre_y = rng.uniform(-0.3, 1.3, size=2)
    waves = 0.06 * np.sin(2 * np.pi * ((2, 3, 2, 4)[variant] * x + rng.random()))
    distance = np.hypot(x - centre_x, (y - centre_y) * (1.0, 0.4, 2.0, 1.0)[variant]) + waves
    return (np.sin(distance * 2 * np.pi * (9, 11, 7, 14)[variant]) > 0.45).astype(np.float32)


def _runs_forwards(rng: np.random.Generator) -> bool:
    return rng.random() < 0.5


def _gradient(grid: Grid, variant: int, rng: np.random.Generator) -> np.ndarray:
    x, y = grid
    ramps = (x, y, 0.5 * (x + y), 1.4 * np.hypot(x - 0.5, y - 0.5))
    ramp = ramps[variant] if _runs_forwards(rng) else 1.0 - ramps[variant]
    return np.clip(ramp, 0, 1).astype(np.float32) ** 1.6


_STYLE_FUNCTIONS: dict[str, Callable[[Grid, int, np.random.Generator], np.ndarray]] = {
    "striped": _striped,
    "checkered": _checkered,
    "dotted": _dotted,
    "brushed": _brushed,
    "woodcut": _woodcut,
    "gradient": _gradient,
}
STYLES: tuple[str, ...] = tuple(_STYLE_FUNCTIONS)


def random_background(rng: np.random.Generator) -> Background:
    """Draw a background whose two colours differ."""
    main, second = rng.choice(list(COLOURS), size=2, replace=False)
    return Background(
        style=str(rng.choice(STYLES)),
        main_colour=str(main),
        second_colour=str(second),
        variant=int(rng.integers(N_VARIANTS)),
        seed=int(rng.integers(2**31)),
    )


def draw_background(background: Background, size_px: int = 96) -> np.ndarray:
    """Paint a background.

    Args:
        background: What to paint.
        size_px: Side of the square picture in pixels.
    Returns:
        RGB picture, (size_px, size_px, 3), uint8.
    """
    rng = np.random.default_rng(background.seed)
    ticks = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    grid = tuple(np.meshgrid(ticks, ticks))
    share = _STYLE_FUNCTIONS[background.style](grid, background.variant, rng)[..., None]
    main = np.asarray(COLOURS[background.main_colour], np.float32)
    second = np.asarray(COLOURS[background.second_colour], np.float32)
    # A softened second colour leaves objects of that colour readable on their own background.
    pattern = main + 0.6 * (second - main)
    return _change_cells(np.round(main + share * (pattern - main)).astype(np.uint8), background.changes)


def _change_cells(picture: np.ndarray, changes: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    edges = [round(index * len(picture) / N_CELLS) for index in range(N_CELLS + 1)]
    for row, column, levels in changes:
        cell = picture[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
        cell[:] = np.clip(cell.astype(np.int16) + levels, 0, 255).astype(np.uint8)
    return picture


def split_of_texture(texture: str) -> str:
    """The split that a texture belongs to, so that no test background was seen in training: train, val or test, 14 : 2 : 4."""
    share = crc32(texture.encode()) % 20
    return "train" if share < 14 else "val" if share < 16 else "test"


def background_of_split(rng: np.random.Generator, split: str) -> Background:
    """Draw a background whose texture belongs to a split."""
    while True:
        background = random_background(rng)
        if split_of_texture(background.texture) == split:
            return background

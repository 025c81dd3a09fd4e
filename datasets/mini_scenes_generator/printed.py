"""Batches of single printed glyphs with facts and captions: what the miniature CLIP learns its words from.

A picture shows one letter, digit or shape in a printed face, bent, slanted, thickened, blurred and coloured at random.
Its facts are integers; a caption states some of them. Because both sides are facts, it is known for every picture and
every caption of a batch whether the one is true of the other: the pre-training needs no false negatives.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .backgrounds import COLOURS, STYLES, draw_background, random_background
from .sprites import FACES, LETTERS, NUMERALS, SHAPES, draw_shape, printed_sprite

GLYPHS: tuple[str, ...] = NUMERALS + LETTERS + SHAPES
FACTS: tuple[str, ...] = ("glyph", "colour", "ground", "style", "weight", "slant", "sharpness", "line", "scene")
UNSTATED = -1
_COLOUR_NAMES = tuple(COLOURS)
_ATLAS_PX = 64
_INK_PX = 46
_RESOLUTIONS = (8, 8, 10, 12, 16, 24, 48, 48)
_NOUNS = ("digit {}", "number {}", "numeral {}", "figure {}", "{}", "digit {}")
_MEDIA = ("a photo of", "a picture of", "an image of", "a scan of", "a drawing of", "a close photo of", "this is", "")
_WEIGHTS = {1: ("bold", "thick", "heavy"), 2: ("thin", "light", "fine")}
_SLANTS = {1: ("slanted", "tilted", "leaning")}
_SHARPNESS = {1: ("blurred", "blurry", "low resolution", "pixelated")}
_LINES = {1: ("handwritten", "hand drawn", "wobbly", "curly")}


def _atlas_cell(ink: np.ndarray) -> np.ndarray:
    """Centre a mask in an atlas cell; wide glyphs shrink until they fit."""
    height, width = ink.shape
    shrink = min(1.0, _INK_PX / width)
    size = (max(2, round(width * shrink)), max(2, round(height * shrink)))
    small = np.asarray(Image.fromarray(np.uint8(ink * 255)).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    cell = np.zeros((_ATLAS_PX, _ATLAS_PX), np.float32)
    top, left = (_ATLAS_PX - small.shape[0]) // 2, (_ATLAS_PX - small.shape[1]) // 2
    cell[top : top + small.shape[0], left : left + small.shape[1]] = small
    return cell


def build_atlas() -> torch.Tensor:
    """Render every glyph in every face.

    Returns:
        Coverage, (len(GLYPHS), len(FACES), 64, 64), float32 in [0, 1]; shapes repeat over the faces.
    """
    cells = [
        [_atlas_cell(printed_sprite(character, face, _INK_PX)) for face in FACES]
        for character in (*(str(digit) for digit in range(10)), *LETTERS)
    ]
    cells += [[_atlas_cell(draw_shape(shape, _INK_PX))] * len(FACES) for shape in SHAPES]
    return torch.from_numpy(np.asarray(cells, np.float32))


class PrintedGlyphs:
    """Draws batches of printed glyphs.

    Args:
        image_size_px: Side of the pictures in pixels.
        n_textures: Number of textured backgrounds drawn in advance.
        seed: Seed of these textures.
    """

    def __init__(self, image_size_px: int, *, n_textures: int = 400, seed: int = 0) -> None:
        self.image_size_px = image_size_px
        self.atlas = build_atlas()
        rng = np.random.default_rng(seed)
        records = [random_background(rng) for _ in range(n_textures)]
        pictures = np.stack([draw_background(record, image_size_px) for record in records])
        self.textures = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        self.texture_facts = torch.tensor(
            [[_COLOUR_NAMES.index(r.main_colour), 1 + STYLES.index(r.style)] for r in records]
        )
        self.palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255

    def sample(
        self, n_images: int, generator: torch.Generator, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a batch.

        Args:
            n_images: Batch size B.
            generator: CPU generator; all randomness comes from it.
            difficulty: 0 (upright, centred, on plain black or white) to 1 (everything at random): a ViT that starts
                from scratch stays at chance for thousands of steps when it meets the whole variety at once.
        Returns:
            Pictures, (B, 3, S, S), float32 in [0, 1], and facts, (B, len(FACTS)), int64.
        """
        facts = torch.full((n_images, len(FACTS)), UNSTATED)
        facts[:, 0] = self._glyph_indices(n_images, generator)
        mask = self._masks(facts, generator, difficulty)
        mask = self._blur(mask, facts, generator)
        ground = self._ground(facts, generator, difficulty)
        ink = self.palette[facts[:, 1]][:, :, None, None]
        contrast = 1.0 - 0.45 * difficulty * torch.rand(n_images, 1, 1, 1, generator=generator)
        images = ground + mask * contrast * (ink - ground)
        noise = 0.03 * torch.rand(n_images, 1, 1, 1, generator=generator)
        images = images + noise * torch.randn(images.shape, generator=generator)
        return images.clamp_(0, 1), facts

    def _glyph_indices(self, n_images: int, generator: torch.Generator) -> torch.Tensor:
        """Digits make half of the batch: ten of 46 glyphs would otherwise be seen too rarely."""
        digits = torch.randint(10, (n_images,), generator=generator)
        others = torch.randint(10, len(GLYPHS), (n_images,), generator=generator)
        return torch.where(torch.rand(n_images, generator=generator) < 0.5, digits, others)

    def _masks(self, facts: torch.Tensor, generator: torch.Generator, difficulty: float) -> torch.Tensor:
        n_images = len(facts)
        faces = torch.randint(len(FACES), (n_images,), generator=generator)
        cells = self.atlas[facts[:, 0], faces][:, None]
        facts[:, 4] = torch.multinomial(torch.tensor([0.4, 0.35, 0.25]), n_images, True, generator=generator)
        thick = F.max_pool2d(F.max_pool2d(cells, 3, 1, 1), 3, 1, 1)
        thin = 1 - F.max_pool2d(1 - cells, 3, 1, 1)
        weight = facts[:, 4, None, None, None]
        cells = torch.where(weight == 1, thick, torch.where(weight == 2, torch.maximum(thin, 0.35 * cells), cells))
        grid = self._affine_grid(facts, generator, difficulty)
        facts[:, 7] = (torch.rand(n_images, generator=generator) < 0.5).long()
        bend = torch.randn(n_images, 2, 4, 4, generator=generator) * facts[:, 7, None, None, None] * 0.13 * difficulty
        bend = F.interpolate(bend, size=grid.shape[1:3], mode="bicubic", align_corners=True)
        return F.grid_sample(cells, grid + bend.permute(0, 2, 3, 1), align_corners=False)

    def _affine_grid(self, facts: torch.Tensor, generator: torch.Generator, difficulty: float) -> torch.Tensor:
        n_images = len(facts)

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(n_images, generator=generator)

        angle, shear = difficulty * uniform(-0.26, 0.26), difficulty * uniform(-0.5, 0.5)
        facts[:, 5] = (shear.abs() > 0.25).long()
        height = 1.2 + difficulty * uniform(-0.58, 0.18)
        width = height * (1.0 + difficulty * uniform(-0.35, 0.2))
        cos, sin = torch.cos(angle), torch.sin(angle)
        room = (1.3 - height).clamp(min=0.05) * 0.5
        shift_x, shift_y = difficulty * uniform(-1, 1) * room, difficulty * uniform(-1, 1) * room
        rows = torch.stack(
            [
                torch.stack([cos / width, (sin + shear * cos) / width, shift_x / width], 1),
                torch.stack([-sin / height, (cos - shear * sin) / height, shift_y / height], 1),
            ],
            1,
        )
        side = self.image_size_px
        return F.affine_grid(rows, [n_images, 1, side, side], align_corners=False)

    def _blur(self, mask: torch.Tensor, facts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Lose detail as a scanner does: average down to few pixels, then interpolate back up."""
        out = mask.clone()
        choice = torch.randint(len(_RESOLUTIONS), (len(mask),), generator=generator)
        for index, resolution in enumerate(_RESOLUTIONS):
            rows = (choice == index).nonzero()[:, 0]
            if resolution < self.image_size_px and len(rows):
                small = F.interpolate(mask[rows], size=resolution, mode="area")
                small = (small * (1.0 + 0.6 * torch.rand(len(rows), 1, 1, 1, generator=generator))).clamp(0, 1)
                out[rows] = F.interpolate(small, size=mask.shape[-1], mode="bicubic").clamp(0, 1)
            facts[rows, 6] = int(resolution <= 12)
        return out

    def _ground(self, facts: torch.Tensor, generator: torch.Generator, difficulty: float) -> torch.Tensor:
        n_images = len(facts)
        texture = torch.randint(len(self.textures), (n_images,), generator=generator)
        textured = torch.rand(n_images, generator=generator) < 0.35 * difficulty
        plain = torch.randint(len(self.palette), (n_images,), generator=generator)
        black, white = _COLOUR_NAMES.index("black"), _COLOUR_NAMES.index("white")
        scanned = torch.rand(n_images, generator=generator) < 1.0 - 0.55 * difficulty
        inverse = torch.rand(n_images, generator=generator) < 0.3
        plain = torch.where(scanned, torch.where(inverse, white, black), plain)
        facts[:, 2] = torch.where(textured, self.texture_facts[texture, 0], plain)
        facts[:, 3] = torch.where(textured, self.texture_facts[texture, 1], 0)
        step = torch.randint(1, len(self.palette), (n_images,), generator=generator)
        colour = (facts[:, 2] + step) % len(self.palette)
        facts[:, 1] = torch.where(scanned & ~textured, torch.where(inverse, black, white), colour)
        flat = self.palette[facts[:, 2]][:, :, None, None]
        return torch.where(textured[:, None, None, None], self.textures[texture], flat)


def _noun(glyph: int, rng: np.random.Generator) -> str:
    name = GLYPHS[glyph]
    if name in NUMERALS:
        return str(rng.choice(_NOUNS)).format(name)
    return f"letter {name.lower()}" if name in LETTERS else name


def caption_glyph(facts: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Describe a glyph, leaving most facts unstated most of the time.

    Args:
        facts: One row of facts, (len(FACTS),), int.
        rng: Chooses words and which facts to state.
    Returns:
        The sentence and the stated facts, (len(FACTS),), ``UNSTATED`` where the sentence is silent.
    """
    stated = np.full(len(FACTS), UNSTATED)
    stated[0] = facts[0]
    words: list[str] = []
    for index, choices in ((6, _SHARPNESS), (4, _WEIGHTS), (5, _SLANTS), (7, _LINES)):
        if facts[index] in choices and rng.random() < 0.2:
            words.append(str(rng.choice(choices[int(facts[index])])))
            stated[index] = facts[index]
    if rng.random() < 0.35:
        words.append(_COLOUR_NAMES[facts[1]])
        stated[1] = facts[1]
    phrase = " ".join([*words, _noun(int(facts[0]), rng)])
    article = "the" if not words and rng.random() < 0.6 else ("an" if phrase[0] in "aeiou" else "a")
    sentence = f"{rng.choice(_MEDIA)} {article} {phrase}{_tail(facts, stated, rng)}".strip()
    return sentence + ("." if rng.random() < 0.7 else ""), stated


def _tail(facts: np.ndarray, stated: np.ndarray, rng: np.random.Generator) -> str:
    colour, style = _COLOUR_NAMES[facts[2]], facts[3]
    draw = rng.random()
    if draw < 0.2:
        stated[2] = facts[2]
        return f" on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background"
    if draw < 0.35 and style:
        stated[3] = style
        return f" on a {STYLES[style - 1]} background"
    if draw < 0.45 and not style:
        stated[1], stated[2], stated[3] = facts[1], facts[2], 0
        return f" in {_COLOUR_NAMES[facts[1]]} on {colour}"
    if draw < 0.55 and facts[7] == 1:
        stated[7] = 1
        return str(rng.choice((" written by hand", " written with a pen", " drawn with a soft pencil", " in ink")))
    if draw < 0.62 and facts[6] == 1:
        stated[6] = 1
        return str(rng.choice((" with soft edges", " made of few pixels", " from a small scan")))
    return ""


def caption_truth(image_facts: torch.Tensor, stated: torch.Tensor) -> torch.Tensor:
    """Tell which captions are true of which pictures.

    Args:
        image_facts: (B, F) int.
        stated: (T, F) int, ``UNSTATED`` where a caption is silent.
    Returns:
        (B, T) bool.
    """
    silent = stated == UNSTATED
    return ((image_facts[:, None] == stated[None]) | silent[None]).all(-1)

"""Weak and strong views of an image, as picklable torchvision transforms.

The weak view is the backbone's own test preprocessing. A strong view is one named recipe; a new one is a line in `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import InterpolationMode

View = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class StrongRecipe:
    """Random changes of one strong view; strengths as in torchvision, probabilities end in `_p`."""

    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area that the crop covers
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of the crop's sides
    interpolation: str = "bicubic"
    degrees: float = 0.0  # largest rotation to either side
    shear: float = 0.0  # largest shear to either side, in degrees
    flip_p: float = 0.5  # left to right
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # px


RECIPES: dict[str, StrongRecipe] = {
    "standard": StrongRecipe(),
    "published": StrongRecipe(interpolation="bilinear", blur_p=1.0),
    # Written characters: a mirrored or half-seen digit is another digit, and colour says nothing.
    "glyphs": StrongRecipe(
        scale=(0.6, 1.0), ratio=(0.8, 1.25), interpolation="bilinear", degrees=10.0, flip_p=0.0,
        jitter=(0.4, 0.4, 0.0, 0.0), grayscale_p=0.0, blur_p=0.0,
    ),
    "glyphs_mild": StrongRecipe(
        scale=(0.8, 1.0), ratio=(0.9, 1.1), interpolation="bilinear", flip_p=0.0,
        jitter=(0.2, 0.2, 0.0, 0.0), grayscale_p=0.0, blur_p=0.0,
    ),
}  # fmt: skip


class RandomBlur:
    """Blur a PIL image with probability `p` and a Gaussian of random width, drawn from torch's global generator.

    Pillow's own filter: torchvision's goes through tensors and is several times slower on the CPU.
    """

    def __init__(self, p: float, sigma: tuple[float, float]) -> None:
        self.p = p
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()).item() >= self.p:
            return image
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(low + (high - low) * torch.rand(()).item()))


def build_strong_view(recipe: str, *, size_px: int, mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """Return the strong view of a recipe.

    Args:
        recipe: A name in `RECIPES`.
        size_px: Side of the square result.
        mean: Per channel, for pixel values in [0, 1].
        std: Likewise.
    Returns:
        Transform of an RGB PIL image into a normalised float tensor, (3, size_px, size_px).
    """
    chosen = RECIPES[recipe]
    return transforms.Compose(
        [
            *_geometry(chosen, size_px),
            *_colour(chosen),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def _geometry(recipe: StrongRecipe, size_px: int) -> list[Callable]:
    interpolation = InterpolationMode(recipe.interpolation)
    steps: list[Callable] = []
    if recipe.degrees or recipe.shear:
        steps.append(
            transforms.RandomAffine(recipe.degrees, shear=recipe.shear or None, interpolation=InterpolationMode.BILINEAR)
        )
    steps.append(transforms.RandomResizedCrop(size_px, scale=recipe.scale, ratio=recipe.ratio, interpolation=interpolation))
    if recipe.flip_p:
        steps.append(transforms.RandomHorizontalFlip(recipe.flip_p))
    return steps


def _colour(recipe: StrongRecipe) -> list[Callable]:
    steps: list[Callable] = []
    if recipe.jitter_p and any(recipe.jitter):
        steps.append(transforms.RandomApply([transforms.ColorJitter(*recipe.jitter)], p=recipe.jitter_p))
    if recipe.grayscale_p:
        steps.append(transforms.RandomGrayscale(recipe.grayscale_p))
    if recipe.blur_p:
        steps.append(RandomBlur(recipe.blur_p, recipe.blur_sigma))
    return steps


def resolve_views(augment: str, *, label_free: bool, online_teacher: bool) -> str:
    """Return which views the training loader emits: `two_crop`, `single_crop` or `none`.

    Args:
        augment: The `AUGMENT` key.
        label_free: Labels come from a teacher. If they are made before the epoch, the weak view is superfluous, and `two_crop`
            means the strong view alone. In the supervised modes both views of `two_crop` are learned from.
        online_teacher: The teacher labels the weak view of each batch.
    """
    if label_free and online_teacher:
        return "two_crop" if augment == "auto" else augment
    if augment == "none" or (augment == "two_crop" and not label_free):
        return augment
    return "single_crop"


def build_train_views(views: str, *, weak: View, strong: View) -> View | list[View]:
    """Return the transform, or the list of transforms (`img`, `img2`), that Dassl's loader gets for resolved `views`."""
    return {"two_crop": [weak, strong], "single_crop": strong, "none": weak}[views]

"""Strong views computed on the model's device (`AUGMENT_DEVICE gpu`), by kornia, with parameters of their own for each image.

The loader then only decodes and shrinks: every image arrives as a square of bytes, slightly larger than the model's input. The
recipe is that of the CPU view. Two things differ: the square ignores the image's aspect ratio, and crops are resampled without
antialiasing, which the small reduction from square to input allows.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from trainers.views import RECIPES, StrongRecipe

SQUARE_PER_INPUT = 8 / 7  # 256 px for an input of 224


def problems_with_kornia(key: str) -> list[str]:
    """Return a message if kornia is not installed.

    Args:
        key: Full name of the config key that asks for it.
    """
    if importlib.util.find_spec("kornia") is not None:
        return []
    return [f"{key} is 'gpu', which needs kornia: pip install kornia (extra `gpu`); expected cpu without it"]


def build_square_view(size_px: int) -> transforms.Compose:
    """Return the loader's part: PIL image -> bytes, (3, S, S), uint8, S = 8/7 of the model's input side."""
    side = round(size_px * SQUARE_PER_INPUT)
    resize = transforms.Resize((side, side), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return transforms.Compose([resize, transforms.PILToTensor()])


class DeviceView(nn.Module):
    """Strong views of a batch: bytes (B, 3, S, S), uint8 -> normalised floats (B, 3, size_px, size_px).

    Random numbers come from torch's global CPU generator, so a seed or a resumed run repeats them on any device.

    Args:
        recipe: A name in `RECIPES`.
        size_px: Side of the model's input.
        mean: Per channel, for pixel values in [0, 1].
        std: Likewise.
    """

    def __init__(self, recipe: str, *, size_px: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.steps = nn.Sequential(*_build_steps(RECIPES[recipe], size_px))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @torch.no_grad()
    def forward(self, squares: Tensor) -> Tensor:
        """See the class."""
        return (self.steps(squares.to(self.mean.dtype) / 255).clamp(0, 1) - self.mean) / self.std


def _build_steps(recipe: StrongRecipe, size_px: int) -> list[Callable]:
    # Imported here: kornia is optional and takes a second.
    from kornia import augmentation as augment

    steps: list[Callable] = []
    if recipe.degrees or recipe.shear:
        steps.append(augment.RandomAffine(recipe.degrees, shear=recipe.shear or None, p=1.0))
    steps.append(
        augment.RandomResizedCrop(
            (size_px, size_px), scale=recipe.scale, ratio=recipe.ratio, resample=recipe.interpolation, cropping_mode="resample"
        )
    )
    if recipe.flip_p:
        steps.append(augment.RandomHorizontalFlip(recipe.flip_p))
    if recipe.jitter_p and any(recipe.jitter):
        steps.append(augment.ColorJitter(*recipe.jitter, p=recipe.jitter_p))
    if recipe.grayscale_p:
        steps.append(augment.RandomGrayscale(p=recipe.grayscale_p))
    if recipe.blur_p:
        kernel_px = 2 * math.ceil(2 * recipe.blur_sigma[1]) + 1
        steps.append(augment.RandomGaussianBlur(kernel_px, recipe.blur_sigma, p=recipe.blur_p))
    return steps

"""Data sets registered with Dassl. Import this package from entry points only: its name is Hugging Face's elsewhere."""
from dassl_host import ensure_dassl

ensure_dassl()

from datasets import (  # noqa: E402  (the engine must be found first)
    caltech101,
    cifar,
    describable_textures,
    eurosat,
    fgvc_aircraft,
    food101,
    handwritten_digits,
    imagenet,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    ucf101,
)

__all__ = [
    "caltech101",
    "cifar",
    "describable_textures",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "handwritten_digits",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
]

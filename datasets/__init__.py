"""Data sets registered with Dassl. Import this package from entry points only: its name is Hugging Face's elsewhere."""
from dassl_host import ensure_dassl

ensure_dassl()

from datasets import (  # noqa: E402  (the engine must be found first)
    abstract_paintings,
    artphoto,
    caltech101,
    cifar,
    custom_images,
    describable_textures,
    emoset,
    emotion6,
    eurosat,
    fgvc_aircraft,
    fi,
    flickr_ldl,
    food101,
    handwritten_digits,
    imagenet,
    mini_scenes,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    twitter_ldl,
    ucf101,
)

__all__ = [
    "abstract_paintings",
    "artphoto",
    "caltech101",
    "cifar",
    "custom_images",
    "describable_textures",
    "emoset",
    "emotion6",
    "eurosat",
    "fgvc_aircraft",
    "fi",
    "flickr_ldl",
    "food101",
    "handwritten_digits",
    "imagenet",
    "mini_scenes",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "twitter_ldl",
    "ucf101",
]

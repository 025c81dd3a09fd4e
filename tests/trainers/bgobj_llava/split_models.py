"""Small models around random LLaVAs, random images and splits, and a few conversations."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llavas import random_llava
from torch import Tensor

from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import PromptEncoder, TextIds

TALKS = (
    [("what colour is the circle?", "red")],
    [("how many objects are there?", "three"), ("where is it?", "left")],
    [("is the square above the clock?", "yes")],
)


def build_model(*, llava: dict[str, Any] | None = None, **options: Any) -> BgObjLlava:
    """Build a model around `random_llava(**llava)`."""
    base, tokenizer = random_llava(**llava or {})
    return BgObjLlava(base, tokenizer, ModelOptions(**options))


def random_images(model: BgObjLlava, n_images: int, seed: int = 0) -> Tensor:
    side = model.info.side_px
    return torch.randn(n_images, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_split(model: BgObjLlava, n_images: int, seed: int = 0, share: float = 0.35) -> SplitBatch:
    generator = torch.Generator().manual_seed(seed)
    return SplitBatch.of(torch.rand(n_images, model.info.n_patches, generator=generator) < share)


def make_split(model: BgObjLlava, *objects: list[int]) -> SplitBatch:
    """Make a split from the patch numbers of the objects of each image."""
    masks = torch.zeros(len(objects), model.info.n_patches, dtype=torch.bool)
    for mask, numbers in zip(masks, objects, strict=True):
        mask[numbers] = True
    return SplitBatch.of(masks)


def paint_objects(model: BgObjLlava, images: Tensor, splits: SplitBatch, seed: int = 1) -> Tensor:
    """Give all object patches other pixels."""
    grid, patch = model.info.grid, model.info.patch_px
    mask = splits.objects.view(-1, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    noise = 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask, noise, images)


def encode_talks(model: BgObjLlava, *numbers: int, answered: bool = True) -> list[TextIds]:
    encoder = PromptEncoder(model.tokenizer)
    talks = [TALKS[number] for number in numbers]
    return [encoder.encode(talk if answered else [(talk[0][0], None)]) for talk in talks]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())

"""Pictures, splits and small models for the tests of answers."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tiny_llavas import random_llava
from torch import Tensor

from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.options import CacheOptions
from trainers.bgobj_llava.generate import Answer, Generator
from trainers.bgobj_llava.geometry import MaskPolicy, PatchSplit, split_raw
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import PromptEncoder

GRID, PATCH = 4, 14
SIDE = GRID * PATCH
SMALL = {"vision": (3, 32), "llm": (3, 48)}
SMALLEST = {"vision": (2, 16), "llm": (1, 24)}
QUESTIONS = ("what colour is the circle?", "how many objects are there?", "where is it?")


def small_model(
    dtype: torch.dtype = torch.float32, attn: str = "sdpa", sizes: dict[str, tuple[int, int]] = SMALL, **options: Any
) -> BgObjLlava:
    """Random model around a random LLaVA of 4 x 4 patches; fusion layers are copies at work, not zeroed ones."""
    llava, tokenizer = copy.deepcopy(_llava(dtype, attn, tuple(sizes.items())))
    return BgObjLlava(llava, tokenizer, ModelOptions(**{"fusion_init": "copy", **options}))


@lru_cache(maxsize=8)
def _llava(dtype: torch.dtype, attn: str, sizes: tuple[tuple[str, tuple[int, int]], ...]) -> tuple[Any, Any]:
    return random_llava(dtype=dtype, attn=attn, **dict(sizes))


def autocast(model: BgObjLlava) -> AbstractContextManager:
    """As the trainer runs it: layers of ours are fp32 in every precision."""
    return torch.autocast("cpu", dtype=model.dtype) if model.dtype != torch.float32 else nullcontext()


def generator(model: BgObjLlava, cache: BackgroundCache | None = None, limit: int = 4, **settings: Any) -> Generator:
    return Generator(model, PromptEncoder(model.tokenizer), cache, limit, **settings)


def new_cache(device: str = "cpu", **options: Any) -> BackgroundCache:
    return BackgroundCache(replace(CacheOptions(), **options), device=device)


def picture(seed: int) -> np.ndarray:
    """Random pixels, (S, S, 3), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def with_objects(scene: np.ndarray, raw: np.ndarray, seed: int) -> np.ndarray:
    """Copy of a scene with other pixels on some patches."""
    inside = np.kron(raw.reshape(GRID, GRID), np.ones((PATCH, PATCH), dtype=bool))
    return np.where(inside[..., None], picture(seed), scene)


def raw_mask(*patches: int) -> np.ndarray:
    raw = np.zeros(GRID * GRID, dtype=bool)
    raw[list(patches)] = True
    return raw


def split_of(*patches: int, ring: int = 0, dilate: int = 0) -> PatchSplit:
    return split_raw(raw_mask(*patches), MaskPolicy(dilate=dilate, overlap_ring=ring, max_obj_frac=1.0), GRID)


def split_at(patches: np.ndarray, ring: int = 0) -> PatchSplit:
    """Split whose background are these patches."""
    return split_of(*np.flatnonzero(~patches), ring=ring)


def normalised(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def answer(asked: Generator, pixels: np.ndarray, split: PatchSplit, question: str = QUESTIONS[0], **more: Any) -> Answer:
    with autocast(asked._model):
        return asked.answer(normalised(pixels), pixels, split, question, **more)


def same(left: Answer, right: Answer) -> bool:
    """Whether two answers agree in every bit."""
    return left.ids == right.ids and torch.equal(left.logits_first, right.logits_first)

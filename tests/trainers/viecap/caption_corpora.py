"""Corpora without texts: stores whose captions are as long, and hold as many nouns, as those of COCO."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from trainers.viecap.caption_store.store import CaptionStore, NounTable
from trainers.viecap.caption_store.training_text import HardPrompts, TrainingText
from trainers.viecap.words.entities import NounMap
from trainers.viecap.words.entity_table import EntityTable
from trainers.viecap.words.prompts import PromptBuilder

NAMES = tuple("dog cat horse bird frisbee pizza truck bus kite zebra giraffe laptop clock bench boat plane".split())
PEOPLE = ("man", "woman", "boy")


class WordTokenizer:
    """A tokenizer in which every word and every mark has an id of its own, above those of `coco_shaped`'s captions."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[self._number(word) for word in re.findall(r" ?\w+|[^\w ]", text)] for text in texts]}

    def _number(self, word: str) -> int:
        return self.ids.setdefault(word, 1000 + len(self.ids))


def store_of(tokens: list[list[int]], nouns: list[list[str]], features: Tensor | None = None) -> CaptionStore:
    """Return a store in memory."""
    names = tuple(dict.fromkeys(noun for row in nouns for noun in row))
    table = NounTable(
        torch.tensor([names.index(noun) for row in nouns for noun in row], dtype=torch.int32), offsets(map(len, nouns)), names
    )
    flat = torch.tensor([number for row in tokens for number in row], dtype=torch.int32)
    return CaptionStore(features, flat, offsets(map(len, tokens)), table, {})


def offsets(lengths: object) -> Tensor:
    return torch.tensor([0, *np.cumsum(list(lengths))], dtype=torch.int64)


def coco_shaped(count: int, *, width: int = 4, seed: int = 0) -> CaptionStore:
    """Return a store whose lengths have COCO's statistics.

    Caption tokens: mean 12.1, standard deviation 2.7 (so that captions are cut at 39), none below 8, a long tail. Effective
    entities: 3.33 per caption. The first id of a caption is its row.
    """
    rng = np.random.default_rng(seed)
    lengths = 8 + rng.negative_binomial(5, 5 / (5 + 4.1), size=count)
    lengths[:3] = 8, 45, 60
    tokens = [[row % 999 + 1, *([7] * (length - 1))] for row, length in enumerate(lengths.tolist())]
    sizes = np.clip(rng.normal(3.4, 1.25, size=count).round(), 0, 9).astype(int)
    nouns = [list(rng.choice(NAMES + PEOPLE, size=size, replace=False)) for size in sizes]
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).half()
    return store_of(tokens, nouns, features)


def hard_prompts(store: CaptionStore, *, probability: float = 0.4, max_entities: int = 10) -> HardPrompts:
    """Return prompts of single-word names in which every word is a token."""
    prompts = PromptBuilder(WordTokenizer(), max_entities, 5)
    return HardPrompts(EntityTable(store.noun_names, NounMap(None), prompts), max_entities, probability, prompts.budget)


def training_text(store: CaptionStore, **options: object) -> TrainingText:
    """Return the captions of a store with hard prompts."""
    return TrainingText(store, options.pop("rows", None), hard_prompts(store, **options))

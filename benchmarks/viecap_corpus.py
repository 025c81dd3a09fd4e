"""A corpus without texts whose captions are as long, and hold as many nouns, as those of COCO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from trainers.viecap.words.entities import NounMap
from trainers.viecap.words.entity_table import EntityTable
from trainers.viecap.network.language_model import load_tokenizer
from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.caption_store.store import CaptionStore, NounTable
from trainers.viecap.caption_store.training_text import HardPrompts, TrainingText

SOFT = 10  # tokens of the soft prompt
MAX_ENTITIES, TEMPLATE = 10, 5
MASK_PROBABILITY = 0.4
CAP = 39  # tokens of the longest caption
FIXED = SOFT + 2 * MAX_ENTITIES - 1 + TEMPLATE + CAP  # 73 positions, to which the reference pads
N_NAMES = 30
PEOPLE = ("man", "woman", "boy")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Captions as ids, and what makes their prompts.

    Attributes:
        store: As a run reads it.
        text: Captions cut to `CAP`, with prompts drawn anew in each epoch.
        noun_map: Filter of the nouns.
        tokenizer: Of the prompts, in which each name is one token.
    """

    store: CaptionStore
    text: TrainingText
    noun_map: NounMap
    tokenizer: PreTrainedTokenizerBase


def coco_shaped(count: int, *, width: int = 512, seed: int = 0) -> Corpus:
    """Draw captions: 12.1 tokens on average, 2.7 standard deviation, none below 8; 3.3 entities that pass the filter.

    Args:
        count: Captions.
        width: E, of their random features.
    """
    rng, tokenizer = np.random.default_rng(seed), load_tokenizer("tiny_gpt2")
    words = [word[1:] for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer))) if re.fullmatch("Ġ[a-z]{4,}", word)]
    noun_map = NounMap(None)
    names = [word for word in words if noun_map.map(word) == word][:N_NAMES]
    lengths = 8 + rng.negative_binomial(5, 5 / (5 + 4.1), size=count)
    tokens = torch.from_numpy(rng.integers(1, len(tokenizer), size=int(lengths.sum()), dtype=np.int32))
    sizes = np.clip(rng.normal(2.9, 1.25, size=count).round(), 0, 9).astype(int)
    candidates = (*names, *PEOPLE)
    nouns = np.concatenate([rng.permutation(len(candidates))[:size] for size in sizes]).astype(np.int32)
    table = NounTable(torch.from_numpy(nouns), _offsets(sizes), candidates)
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).half()
    store = CaptionStore(features, tokens, _offsets(lengths), table, {})
    prompts = PromptBuilder(tokenizer, MAX_ENTITIES, TEMPLATE)
    entities = EntityTable(candidates, noun_map, prompts)
    hard = HardPrompts(entities, MAX_ENTITIES, MASK_PROBABILITY, prompts.budget)
    return Corpus(store, TrainingText(store, None, hard, max_caption_tokens=CAP), noun_map, tokenizer)


def _offsets(lengths: np.ndarray) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths.tolist())], dtype=torch.int64)

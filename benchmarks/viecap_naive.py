"""A training loop of the reference's kind, written from its description: what padding, full scores and per-caption work cost.

Every caption is padded to one fixed length and read with a key mask; every position gets scores of the whole vocabulary; labels
are shifted, id 0 is ignored; entities, prompts and padding are made caption by caption in Python.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.viecap_corpus import FIXED, MASK_PROBABILITY, MAX_ENTITIES, SOFT, Corpus
from trainers.viecap.words.entities import effective_entities
from trainers.viecap.network.model import PrefixCaptioner


@dataclass(frozen=True, eq=False)
class NaiveBatch:
    """Captions at fixed length.

    Attributes:
        features: (B, E), fp32.
        ids: Hard prompt, caption and zeros, (B, FIXED - SOFT), int64.
        labels: What each position is to predict, already shifted; 0 where nothing, (B, FIXED), int64.
        mask: Positions that are no padding, (B, FIXED), int64.
    """

    features: Tensor
    ids: Tensor
    labels: Tensor
    mask: Tensor


class NaiveData:
    """Captions and nouns as Python lists."""

    def __init__(self, corpus: Corpus) -> None:
        store = corpus.store
        self.corpus, self.features = corpus, store.features
        offsets = store.token_offset.tolist()
        self.captions = [store.tokens[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]
        names, offsets = store.noun_names, store.noun_offset.tolist()
        self.nouns = [
            [names[noun] for noun in store.nouns[start:end].tolist()] for start, end in zip(offsets, offsets[1:], strict=False)
        ]

    def batch(self, rows: Sequence[int]) -> NaiveBatch:
        """Make a batch, caption by caption."""
        prompts = [self.corpus.tokenizer.encode(self._sentence(row), add_special_tokens=False) for row in rows]
        features = torch.stack([self.features[row].float() for row in rows])
        return pad_rows(features, prompts, [self.captions[row] for row in rows])

    def _sentence(self, row: int) -> str:
        entities = effective_entities(self.nouns[row], self.corpus.noun_map, MAX_ENTITIES)
        kept = list({entity for entity in entities if random.random() >= MASK_PROBABILITY})
        random.shuffle(kept)
        return f"There are {', '.join(kept) if kept else 'something'} in image."


def pad_rows(features: Tensor, prompts: Sequence[list[int]], captions: Sequence[list[int]]) -> NaiveBatch:
    """Pad given prompts and captions to the fixed length; what exceeds it is cut."""
    ids, labels, masks = [], [], []
    for prompt, caption in zip(prompts, captions, strict=True):
        row = (prompt + caption)[: FIXED - SOFT]
        padding = FIXED - SOFT - len(row)
        target = ([0] * (SOFT + len(prompt) - 1) + caption)[:FIXED]
        ids.append(torch.tensor(row + [0] * padding))
        labels.append(torch.tensor(target + [0] * (FIXED - len(target))))
        masks.append(torch.cat([torch.ones(FIXED - padding, dtype=torch.long), torch.zeros(padding, dtype=torch.long)]))
    return NaiveBatch(features, torch.stack(ids), torch.stack(labels), torch.stack(masks))


def naive_loss(captioner: PrefixCaptioner, vectors: Tensor, ids: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean cross-entropy per label.

    Args:
        captioner: Soft prompt first.
        vectors: From `soft_input`, (B, E).
        ids, labels, mask: See `NaiveBatch`. Without a mask (the meta device cannot look into one) padding is read, too.
    """
    embeds = torch.cat([captioner.mapping(vectors), captioner.embed(ids)], dim=1)
    if mask is None:
        scores = captioner.scores(captioner.hidden(embeds))
    else:
        scores = captioner.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=0)

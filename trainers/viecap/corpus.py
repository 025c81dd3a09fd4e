"""The training side of a run: captions, their store, and the loader; nothing is opened before it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from dassl.data.datasets import Datum
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from trainers.epoch_order import Position
from trainers.viecap import prepare, settings
from trainers.viecap.caption_store.features import encode_texts
from trainers.viecap.caption_store.loader import CaptionLoader
from trainers.viecap.caption_store.store import CaptionStore, NounTable
from trainers.viecap.caption_store.training_captions import TrainingCaptions, collect_captions
from trainers.viecap.caption_store.training_text import HardPrompts, TrainingText, choose_rows
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.words.entities import NounMap
from trainers.viecap.words.entity_table import EntityTable
from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.words.vocabularies import read_filter

logger = logging.getLogger(__name__)


class Corpus:
    """Captions that a run learns from.

    Args:
        items: Of the training split.
        node: `TRAINER.VIECAP`.
        seed: `SEED`; chooses the captions of a few-shot run.
        batch_size: Captions per batch.
        clip: Whose text vectors stand for images.
    """

    def __init__(self, items: Sequence[Datum], node: CfgNode, *, seed: int, batch_size: int, clip: ClipSource) -> None:
        self._items, self._node, self._clip = items, node, clip
        self._seed, self._batch_size = max(seed, 0), batch_size

    @cached_property
    def captions(self) -> TrainingCaptions:
        """All captions of the split, or the first `DATA_LIMIT`."""
        return collect_captions(self._items, self._node.DATA_LIMIT)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Which of them are learned."""
        return choose_rows(len(self.captions), ratio=self._node.FEW_SHOT_RATIO, seed=self._seed)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _named(self) -> prepare.NamedExtractor:
        node, vocabulary = self._node, None
        if node.ENTITY_EXTRACTOR == "vocabulary":
            vocabulary = read_filter(node.NAME_OF_OBJECTS_VOCABS, node.PATH_OF_OBJECTS_VOCABS)
        return prepare.NamedExtractor(node.ENTITY_EXTRACTOR, vocabulary)

    def find_nouns(self) -> NounTable:
        """Return the nouns of all captions, extracted if they are not in the cache."""
        return prepare.caption_nouns(self.captions, self._named, cache_dir=prepare.CACHE_DIR)

    def open_store(self, tokenizer: object) -> CaptionStore:
        """Open the store, built first if it is not there.

        Args:
            tokenizer: Of the language model.
        """
        node = self._node
        return prepare.prepare_store(
            self.captions,
            named=self._named,
            tokenizer=tokenizer,
            clip=self._clip if self._uses_vectors and node.USING_CLIP_FEATURES else None,
            store_dir=node.STORE_DIR,
            cache_dir=prepare.CACHE_DIR,
        )

    def count_nouns(self, store: CaptionStore) -> dict[str, int]:
        """Return noun -> learned captions that have it."""
        return store.noun_table.count(self.rows)

    def build_text(self, store: CaptionStore, prompts: PromptBuilder | None, eos_id: int | None) -> TrainingText:
        """Return what is learned as token ids.

        Args:
            store: Of the captions.
            prompts: Makes hard prompts; None without one.
            eos_id: End token that is learned; None: none is.
        """
        node, hard = self._node, None
        if prompts is not None:
            nouns = self.count_nouns(store)
            names = read_filter(node.NAME_OF_OBJECTS_VOCABS, node.PATH_OF_OBJECTS_VOCABS, corpus_nouns=nouns)
            table = EntityTable(store.noun_names, NounMap(names), prompts)
            probability = node.PROB_OF_RANDOM_MASK if node.RANDOM_MASK else 0.0
            hard = HardPrompts(table, node.MAX_NUM_OF_ENTITIES, probability, prompts.budget)
        text = TrainingText(store, self.rows, hard, max_caption_tokens=node.MAX_CAPTION_TOKENS, eos_id=eos_id)
        blank = [f"{self.captions.n_blank} blank captions left out"] if self.captions.n_blank else []
        logger.info("Training text\n  %s", "\n  ".join([*text.report(), *blank]))
        return text

    def build_loader(
        self, store: CaptionStore, text: TrainingText, *, position: Callable[[], Position], device: torch.device
    ) -> CaptionLoader:
        """Return the loader of training batches; see there for the arguments."""
        node = self._node
        encodes = self._uses_vectors and store.features is None
        return CaptionLoader(
            text,
            store.features if self._uses_vectors else None,
            settings.batch_shape(node, self._batch_size),
            position=position,
            device=device,
            placement=node.LOADER.PLACEMENT,
            encode_rows=self._encode_rows if encodes else None,
        )

    @property
    def _uses_vectors(self) -> bool:
        return not self._node.ONLY_HARD_PROMPT

    def _encode_rows(self, rows: NDArray[np.int64]) -> Tensor:
        return encode_texts(self._clip.loaded, [self.captions.texts[row] for row in rows], len(rows))

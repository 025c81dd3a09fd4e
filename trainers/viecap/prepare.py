"""What is computed once and kept: nouns and vectors of training captions, vectors of images and of vocabularies.

Training and `scripts/viecap_prepare.py` call the same functions; whatever is there already, whole and of the same key, is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from clip_ext.folders import present_folder
from trainers.viecap.caption_store.features import (
    FeatureTable,
    encode_images,
    encode_texts,
    hash_images,
    read_images,
    write_images,
)
from trainers.viecap.caption_store.store import (
    CaptionRow,
    CaptionStore,
    build_store,
    collect_nouns,
    open_store,
    read_nouns,
    write_nouns,
)
from trainers.viecap.caption_store.store_files import Key, StoreDamaged, StoreDiffers, open_sealed, write_sealed
from trainers.viecap.caption_store.store_key import (
    automatic_folder,
    hash_captions,
    hash_tokenizer,
    image_key,
    noun_key,
    store_key,
)
from trainers.viecap.caption_store.training_captions import TrainingCaptions
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.storage.artifact import clip_facts
from trainers.viecap.storage.vocabulary_file import Vocabulary
from trainers.viecap.words.captions import NORMALISER_VERSION
from trainers.viecap.words.extractors import Extractor, build_extractor
from trainers.viecap.words.retrieval import cached_embeddings
from trainers.viecap.words.vocabularies import read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainers.viecap.caption_store.store import NounTable

logger = logging.getLogger(__name__)

CACHE_DIR = "output/cache"
CODE_VERSION = "1"  # of what is written here; raise it when its meaning changes
FACTS = "facts.json"
TEXT_BATCH = 512
REPORT_EVERY = 50_000  # captions between two lines of progress

Content = TypeVar("Content")


class NamedExtractor:
    """An extractor and what its results depend on.

    Args:
        name: `ENTITY_EXTRACTOR`.
        vocabulary: Of the extractor `vocabulary`: the names that it looks for.
    """

    def __init__(self, name: str, vocabulary: Iterable[str] | None = None) -> None:
        names = None if vocabulary is None else sorted(vocabulary)
        self.extractor: Extractor = build_extractor(name, vocabulary=names)
        self.uses_given = name == "given"
        words = "" if names is None else f", names {hashlib.sha256(json.dumps(names).encode('utf-8')).hexdigest()}"
        self.version = self.extractor.version + words


def caption_nouns(captions: TrainingCaptions, named: NamedExtractor, *, cache_dir: str | Path) -> NounTable:
    """Return the nouns of captions, extracted if they are not in the cache.

    Args:
        captions: N of them.
        named: Finds the nouns.
        cache_dir: Where they are kept.
    """
    key = _noun_key(captions, named)

    def build(folder: Path) -> None:
        write_nouns(folder, key, collect_nouns(list(_extract(captions, named))))

    return _find(automatic_folder(cache_dir, "nouns", key), build, lambda folder: read_nouns(folder, key))


def prepare_store(
    captions: TrainingCaptions,
    *,
    named: NamedExtractor,
    tokenizer: PreTrainedTokenizerBase,
    clip: ClipSource | None,
    store_dir: str | Path = "",
    cache_dir: str | Path = CACHE_DIR,
) -> CaptionStore:
    """Open the store of captions, built first if there is none.

    Args:
        captions: All that are to be learned from, one or more.
        named: Finds their nouns.
        tokenizer: Of the language model.
        clip: Whose text tower encodes them; None: a store without vectors.
        store_dir: Folder of the store; a store of something else there is refused. "" = below `cache_dir`, rebuilt when needed.
        cache_dir: Of the automatic store, and of nouns.
    Raises:
        StoreDiffers: If `store_dir` holds another store (names the fields that differ).
        StoreDamaged: If it holds a damaged one.
        ValueError: If a caption has no token, or `given` entities are missing.
    """
    key = store_key(
        _noun_key(captions, named), clip=clip.identity if clip else None, tokenizer=hash_tokenizer(tokenizer)
    )

    def build(folder: Path) -> None:
        table = caption_nouns(captions, named, cache_dir=cache_dir)
        rows = [CaptionRow(text, table.of(number)) for number, text in enumerate(captions.texts)]
        build_store(folder, rows, key=key, tokenizer=tokenizer, encode_texts=None if clip is None else encode)

    def encode(texts: list[str]) -> Tensor:
        return encode_texts(clip.loaded, texts, TEXT_BATCH)

    folder = Path(store_dir) if store_dir else automatic_folder(cache_dir, "captions", key)
    return _find(folder, build, lambda place: open_store(place, key), is_named=bool(store_dir))


def prepare_images(
    paths: Sequence[str], names: Sequence[str], split: str, *, clip: ClipSource, cache_dir: str | Path = CACHE_DIR,
    batch: int = 64, workers: int = 0,
) -> FeatureTable:  # fmt: skip
    """Return the vectors of images, encoded if they are not in the cache.

    Args:
        paths: Files.
        names: Of the images, as many; each once.
        split: val or test.
        clip: Whose image tower encodes them.
        cache_dir: Where they are kept.
        batch: Images per forward.
        workers: Processes that decode.
    Raises:
        ValueError: If files cannot be read (names them).
    """
    key = image_key(hash_images(paths, names), clip=clip.identity)

    def build(folder: Path) -> None:
        logger.info("image features: encoding %d images of the %s split", len(paths), split)
        features = encode_images(clip.loaded, paths, batch=batch, workers=workers)
        write_images(folder, key, split, FeatureTable(features, names))

    return _find(automatic_folder(cache_dir, f"images_{split}", key), build, lambda folder: read_images(folder, key, split))


def prepare_vocabulary(
    name: str, path: str | Path = "", *, clip: ClipSource, ensemble: bool, single_word: bool = False,
    corpus_nouns: Mapping[str, int] | None = None, cache_dir: str | Path = CACHE_DIR,
) -> Vocabulary:  # fmt: skip
    """Return a vocabulary with its vectors, encoded if they are not in the cache.

    Args:
        name: `NAME_OF_ENTITIES_TEXT`.
        path: `PATH_OF_ENTITIES_TEXT`.
        clip: Whose text tower encodes it.
        ensemble: Mean over templates (`PROMPT_ENSEMBLE`).
        single_word: Leave out names of several words.
        corpus_nouns: Noun -> captions that have it, for the name `corpus`.
        cache_dir: Where vectors are kept.
    Raises:
        ValueError, FileNotFoundError: As of `vocabularies.read_vocabulary`.
    """
    names = read_vocabulary(name, path, corpus_nouns=corpus_nouns, single_word=single_word)
    vectors = cached_embeddings(names, clip.identity, lambda: clip.loaded, ensemble=ensemble, cache_dir=cache_dir)
    return Vocabulary(name, names, vectors, ensemble)


def prepare_clip_facts(clip: ClipSource, *, cache_dir: str | Path = CACHE_DIR) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an artefact says about a CLIP and its preprocessing, from the cache if its towers were loaded before."""
    key = {"name": clip.name, "clip": clip.identity.fingerprint, "clip_settings": clip.identity.settings, "code": CODE_VERSION}

    def build(folder: Path) -> None:
        write_sealed(folder, "clip", key, tensors={}, texts={FACTS: list(clip_facts(clip.loaded))}, facts={})

    def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        model, pixels = open_sealed(folder, "clip", key).texts[FACTS]
        return model, pixels

    return _find(automatic_folder(cache_dir, "clip", key), build, read)


def _noun_key(captions: TrainingCaptions, named: NamedExtractor) -> Key:
    given = captions.given if named.uses_given else None
    return noun_key(hash_captions(captions.texts, given), normaliser=NORMALISER_VERSION, extractor=named.version)


def _extract(captions: TrainingCaptions, named: NamedExtractor) -> Iterable[list[str]]:
    given = captions.given or [None] * len(captions)
    for number, (text, names) in enumerate(zip(captions.texts, given, strict=True), start=1):
        yield named.extractor.nouns(text, names)
        if number % REPORT_EVERY == 0:
            logger.info("entities: %d of %d captions", number, len(captions))


def _find(
    folder: Path, build: Callable[[Path], None], read: Callable[[Path], Content], *, is_named: bool = False
) -> Content:
    """Read a folder, built first if it is not there; a damaged automatic one is built again."""
    present = present_folder(folder)
    if present.is_dir() and any(present.iterdir()):
        try:
            return read(folder)
        except (StoreDamaged, StoreDiffers) as error:
            if is_named:
                raise type(error)(*_with_remedy(error)) from error
            logger.warning("%s\nIt is built again.", error)
    with torch.random.fork_rng(devices=[]):  # a loader of pictures draws; a run does not depend on what was there before it
        build(folder)
    return read(folder)


def _with_remedy(error: StoreDamaged | StoreDiffers) -> tuple:
    message = f"TRAINER.VIECAP.STORE_DIR: {error}; expected the store of this run, a new folder, or '' (found and kept by key)"
    return (message, error.fields) if isinstance(error, StoreDiffers) else (message,)

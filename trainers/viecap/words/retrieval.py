"""Finds the entities that an image shows: zero-shot retrieval over a vocabulary (ViECap, arXiv 2307.16525, section 3.2)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_ext.loader import ClipIdentity, LoadedClip
from clip_ext.tensor_cache import cached_tensors
from clip_ext.text_bank import DatasetTexts, encode_texts, load_texts

__all__ = ["Found", "Retriever", "cached_embeddings", "embed_vocabulary", "entity_texts"]

logger = logging.getLogger(__name__)

# Raise when texts or means change, so that older cache files are not read.
CODE_VERSION = 1
_CHUNK = 1024  # names whose texts are in memory at once; Visual Genome has 64,890 names
_NODE = "TRAINER.VIECAP"


class Found(NamedTuple):
    """An entity of an image.

    Attributes:
        name: From the vocabulary.
        probability: Softmax over the whole vocabulary, [0, 1].
        used: Whether it reaches the threshold, so that the prompt names it.
    """

    name: str
    probability: float
    used: bool


class Retriever:
    """Compares images with the names of a vocabulary.

    p = softmax(cos(v, u) / temperature) over all names; there is no person merge and no stop list.
    """

    def __init__(
        self, embeddings: Tensor, names: Sequence[str], *, top_k: int = 3, threshold: float = 0.2, temperature: float = 0.01
    ) -> None:
        """Keep the vocabulary.

        Args:
            embeddings: Unit-norm text features, (V, E), fp32.
            names: V names, in the same order.
            top_k: Most entities of an image, 1 or more.
            threshold: Smallest probability of a used entity, [0, 1].
            temperature: Divides the cosines, > 0.
        Raises:
            ValueError: If a value is out of range or the lengths differ (lists every problem).
        """
        problems = []
        if len(embeddings) != len(names) or not len(names):
            problems.append(f"{len(names)} names come with {len(embeddings)} embeddings; expected as many, 1 or more")
        if top_k < 1:
            problems.append(f"{_NODE}.TOP_K is {top_k}; expected 1 or more")
        if not 0 <= threshold <= 1:
            problems.append(f"{_NODE}.THRESHOLD is {threshold}; expected a number in [0, 1]")
        if temperature <= 0:
            problems.append(f"{_NODE}.TEMPERATURE is {temperature}; expected a number above 0")
        if problems:
            raise ValueError("; ".join(problems))
        self.names = tuple(names)
        self._embeddings = embeddings.float()
        self._top_k, self._threshold, self._temperature = min(top_k, len(names)), threshold, temperature

    @torch.no_grad()
    def find(self, features: Tensor) -> list[list[Found]]:
        """Find the entities of images.

        Args:
            features: CLIP image features, (B, E), any length and float dtype; the vocabulary follows them to their device.
        Returns:
            Per image its `top_k` best names by falling probability; names of equal probability as the vocabulary has them.
        Raises:
            ValueError: If the width is not the vocabulary's: the features come from another CLIP.
        """
        if features.shape[-1] != self._embeddings.shape[-1]:
            raise ValueError(
                f"image features have width {features.shape[-1]}, the vocabulary's {self._embeddings.shape[-1]}: they come "
                "from different CLIPs (MODEL.BACKBONE.NAME)"
            )
        self._embeddings = self._embeddings.to(features.device)
        with torch.autocast(features.device.type, enabled=False):  # at temperature 0.01, half precision moves p by percents
            cosines = F.normalize(features.float(), dim=-1) @ self._embeddings.T
        probabilities, places = (cosines / self._temperature).softmax(dim=-1).topk(self._top_k, dim=-1)
        return [self._list(*row) for row in zip(probabilities.tolist(), places.tolist(), strict=True)]

    def _list(self, probabilities: list[float], places: list[int]) -> list[Found]:
        # topk promises no order among equals.
        ordered = sorted(zip(probabilities, places, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return [Found(self.names[place], p, p >= self._threshold) for p, place in ordered]


def entity_texts(name: str, *, ensemble: bool) -> list[str]:
    """Return the texts whose mean feature stands for an entity.

    Args:
        name: Of the entity.
        ensemble: The templates of `clip_ext/texts/templates/viecap.json`; False: "A photo of a <name>.", with "an" before
            a vowel.
    """
    texts = _templates()
    if ensemble:
        return [template.replace("{}", name) for template in texts.templates]
    template = texts.zeroshot.replace(" a {}", " an {}") if name[:1].lower() in tuple("aeiou") else texts.zeroshot
    return [template.replace("{}", name)]


def embed_vocabulary(names: Sequence[str], clip: LoadedClip, *, ensemble: bool, batch: int = 256) -> Tensor:
    """Encode a vocabulary: per name, the normalised mean of its texts' normalised features.

    Args:
        names: V names, 1 or more.
        clip: With its text tower.
        ensemble: As in `entity_texts`.
        batch: Texts per forward, >= 1.
    Returns:
        (V, E), unit-norm, fp32, on the CPU.
    """
    parts = []
    for first, chunk in _chunks(names):
        if first:
            logger.info("vocabulary: %d of %d names encoded", first, len(names))
        texts = [text for name in chunk for text in entity_texts(name, ensemble=ensemble)]
        features = encode_texts(clip, texts, batch=batch)
        parts.append(F.normalize(features.unflatten(0, (len(chunk), -1)).mean(dim=1), dim=-1))
    return torch.cat(parts)


def cached_embeddings(
    names: Sequence[str], clip: ClipIdentity, load: Callable[[], LoadedClip], *, ensemble: bool, cache_dir: str | Path
) -> Tensor:
    """Return `embed_vocabulary`'s result from the cache; the CLIP is loaded only on a miss.

    Args:
        names: V names, 1 or more.
        clip: Which CLIP `load` would load.
        load: Called on a miss.
        ensemble: As in `entity_texts`.
        cache_dir: Folder of the cache file, which is named by a hash of everything that determines the result.
    """
    texts = [entity_texts(name, ensemble=ensemble) for name in names]
    identity = [CODE_VERSION, texts, clip.fingerprint, clip.settings]
    key = hashlib.sha256(json.dumps(identity).encode("utf-8")).hexdigest()

    def is_valid(tensors: dict[str, Tensor]) -> bool:
        embeddings = tensors["embeddings"]
        lengths = embeddings.norm(dim=-1)
        return embeddings.shape == (len(names), clip.embed_dim) and torch.allclose(lengths, torch.ones(len(names)), atol=1e-3)

    return cached_tensors(
        Path(cache_dir) / f"viecap_vocabulary-{key}.safetensors",
        lambda: {"embeddings": embed_vocabulary(names, load(), ensemble=ensemble)},
        is_valid=is_valid,
        content="entity vocabulary",
    )["embeddings"]


@lru_cache(maxsize=1)
def _templates() -> DatasetTexts:
    return load_texts("viecap")


def _chunks(names: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for first in range(0, len(names), _CHUNK):
        yield first, names[first : first + _CHUNK]

"""The vocabulary that a run compares images with, stored with its text vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainers.viecap.storage.weights import read_tensors, save_tensors


@dataclass(frozen=True)
class Vocabulary:
    """Names that images are compared with.

    Attributes:
        name: `NAME_OF_ENTITIES_TEXT`, or the file's name.
        names: Sorted, unique, V of them.
        embeddings: L2-normalised text vectors, (V, E), fp32.
        ensemble: Whether they are means over templates.
    """

    name: str
    names: tuple[str, ...]
    embeddings: Tensor
    ensemble: bool


def write_vocabulary(path: Path, vocabulary: Vocabulary, clip_fingerprint: str) -> None:
    """Write names and vectors of a vocabulary into one file."""
    facts = {"name": vocabulary.name, "ensemble": vocabulary.ensemble, "clip": clip_fingerprint, "names": vocabulary.names}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    save_tensors({"embeddings": vocabulary.embeddings.float()}, path, metadata)


def read_vocabulary_file(path: Path) -> Vocabulary:
    """Read what `write_vocabulary` wrote.

    Raises:
        ValueError: If it is damaged.
    """
    tensors, metadata = read_tensors(path)
    facts = {key: json.loads(value) for key, value in metadata.items()}
    return Vocabulary(facts["name"], tuple(facts["names"]), tensors["embeddings"], facts["ensemble"])

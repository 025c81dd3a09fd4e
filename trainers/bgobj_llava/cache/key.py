"""What a cached background belongs to: hashes over everything that its tokens, keys and values depend on.

A context is the hash of all that is the same for every background of a run; a key is the hash of a context, a set of patches
and their pixels. Fields are length-prefixed, so no two lists of fields are the same bytes. Detector and mask policy are not
part of it: they choose patches, and the patches are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_ext.weights import compute_fingerprint

SCHEMA = "bgobj-cache-1"  # of the files


def hash_fields(fields: Iterable[bytes | str]) -> str:
    """Return the SHA-256 over length-prefixed fields, hexadecimal."""
    digest = hashlib.sha256()
    for field in fields:
        content = field.encode() if isinstance(field, str) else field
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class ContextFields:
    """Everything but patches and pixels that cached tokens, keys and values depend on.

    Attributes:
        weights: Fingerprint of tower, projectors, language model, adapter, separators and fusion.
        options: How the model is built and run: split, class tokens, separators, positions, fusion.
        preprocessing: How pixels become input: sides, mean, standard deviation, fill colour, aspect.
        prefix_ids: Token ids before the image.
        separator_ids: Separator -> token id.
        visible: Groups of patches that the language model sees.
        dtype: Of the weights, and of autocast where it is at work.
        attention: Implementations in language model and tower.
        device: Family, and name of a GPU.
    """

    weights: str
    options: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    prefix_ids: Sequence[int]
    separator_ids: Mapping[str, int]
    visible: Sequence[str]
    dtype: str
    attention: str
    device: str


def cache_context(fields: ContextFields) -> str:
    """Hash the fields, this code and the libraries' versions; entries are shared within one context only."""
    own = [f"{name}={json.dumps(value, sort_keys=True)}" for name, value in sorted(vars(fields).items())]
    return hash_fields([SCHEMA, code_version(), torch.__version__, _transformers_version(), *own])


def entry_key(context: str, patches: NDArray[np.bool_], rows: NDArray[np.uint8]) -> str:
    """Hash a background.

    Args:
        context: From `cache_context`.
        patches: Which patches it consists of, (P,).
        rows: Their pixels, (n_b, 3 * p * p).
    """
    shape = f"{len(patches)} {rows.shape[0]} {rows.shape[1]}"
    return hash_fields([context, shape, np.packbits(patches).tobytes(), np.ascontiguousarray(rows).tobytes()])


def weights_fingerprint(base: str, tensors: Mapping[str, Tensor]) -> str:
    """Join the fingerprint of unchanging weights with that of those in memory.

    Args:
        base: Of the files that frozen weights came from; "" if all weights are among the tensors.
        tensors: Name -> tensor; hashed as they are now.
    """
    return hash_fields([base, compute_fingerprint(tensors)])


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash the sources that tokens are computed by: a change of the code makes stored entries unreachable."""
    room = Path(__file__).resolve().parents[1]
    files = sorted([*room.rglob("*.py"), *(room.parents[1] / "clip_ext").glob("*.py")])
    return hash_fields([content for file in files for content in (file.name, file.read_bytes())])


def _transformers_version() -> str:
    import transformers

    return transformers.__version__

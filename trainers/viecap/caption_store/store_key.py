"""What a caption store belongs to: hashes of captions, CLIP and tokenizer, and the versions of what made the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.viecap.caption_store.store_files import Key, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clip_ext.loader import ClipIdentity

# Raise when the meaning of the stored tensors changes, so that older stores are not read.
CODE_VERSION = 1
DTYPE = "float16"


def hash_captions(captions: Sequence[str], given: Sequence[Sequence[str]] | None = None) -> str:
    """Hash captions, as they are in the data, and the nouns that come with them, if any; order counts."""
    digest = hashlib.sha256()
    for text in captions if given is None else (text for row in zip(captions, given, strict=True) for text in _flat(row)):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(4, "big") + content)
    return digest.hexdigest()


def _flat(row: tuple[str, Sequence[str]]) -> Iterable[str]:
    # The number of nouns stands between two captions, so that no noun can pass for a caption.
    return row[0], str(len(row[1])), *row[1]


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides a text's ids, wherever the tokenizer's files lie."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(fast.to_str()) if fast else {"slow": str(type(tokenizer)), "vocabulary": tokenizer.get_vocab()}
    # Calls with other settings leave these two behind; none of ours uses them.
    for passing in ("truncation", "padding"):
        content.pop(passing, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def noun_key(captions: str, *, normaliser: str, extractor: str) -> dict[str, str]:
    """Return the key of extracted nouns.

    Args:
        captions: From `hash_captions`.
        normaliser: Version of the caption normaliser.
        extractor: Name and version of the extractor.
    """
    return {"captions": captions, "normaliser": normaliser, "extractor": extractor, "code": str(CODE_VERSION)}


def store_key(nouns: Key, *, clip: ClipIdentity | None, tokenizer: str) -> dict[str, str]:
    """Return the key of a caption store.

    Args:
        nouns: From `noun_key`.
        clip: Whose text tower encodes; None for a store without features.
        tokenizer: From `hash_tokenizer`.
    """
    towers = {"clip": clip.fingerprint, "clip_settings": clip.settings, "dtype": DTYPE} if clip else {"clip": "", "dtype": ""}
    return {**nouns, **towers, "tokenizer": tokenizer}


def image_key(images: str, *, clip: ClipIdentity) -> dict[str, str]:
    """Return the key of image features.

    Args:
        images: Hash of the images' names and bytes.
        clip: Whose image tower encodes, after its own preprocessing.
    """
    return {
        "images": images, "clip": clip.fingerprint, "clip_settings": clip.settings, "dtype": DTYPE, "code": str(CODE_VERSION),
    }  # fmt: skip


def automatic_folder(cache_dir: str | Path, kind: str, key: Key) -> Path:
    """Return the folder below `cache_dir` that is named by a key."""
    return Path(cache_dir) / f"viecap_{kind}-{digest_of(key)[:24]}"

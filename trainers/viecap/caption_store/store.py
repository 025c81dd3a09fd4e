"""The caption store: CLIP features, token ids and nouns of all training captions, built once and mapped into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.viecap.caption_store.store_files import Key, StoreDamaged, open_sealed, write_sealed
from trainers.viecap.ragged import Ragged, offsets_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

KIND, NOUNS_KIND = "captions", "nouns"
NAMES_FILE = "entities.json"
CHUNK = 20_000  # captions that are tokenised at once

EncodeTexts = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class CaptionRow:
    """A caption as it is learned.

    Attributes:
        caption: Normalised.
        nouns: Lower-case, singular, unique, in text order.
    """

    caption: str
    nouns: Sequence[str]


@dataclass(frozen=True)
class NounTable:
    """Nouns of N captions.

    Attributes:
        nouns: Indices into `names`, caption by caption in text order, (M,), int32.
        offset: Where each caption's nouns begin and end, (N + 1,), int64.
        names: In the order of their first occurrence.
    """

    nouns: Tensor
    offset: Tensor
    names: tuple[str, ...]

    def of(self, row: int) -> list[str]:
        """Return the nouns of a caption."""
        start, end = self.offset[row : row + 2].tolist()
        return [self.names[noun] for noun in self.nouns[start:end].tolist()]

    def count(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Count captions per noun; nouns without a caption are left out.

        Args:
            rows: Of the captions that count; None = all.
        """
        nouns = Ragged(self.nouns.numpy(), self.offset.numpy())
        counts = np.bincount((nouns if rows is None else nouns.take(rows)).flat, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}


@dataclass(frozen=True)
class CaptionStore:
    """An opened store of N captions; all tensors are mapped from the file.

    Attributes:
        features: Of the text tower, not normalised, (N, E), fp16; None in a store without features.
        tokens: Token ids, caption by caption, (K,), int32; no caption is cut.
        token_offset: Where each caption's ids begin and end, (N + 1,), int64.
        noun_table: Nouns of the captions.
        manifest: With the key it belongs to.
    """

    features: Tensor | None
    tokens: Tensor
    token_offset: Tensor
    noun_table: NounTable
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.token_offset) - 1

    @property
    def nouns(self) -> Tensor:
        """Indices into `noun_names`, (M,), int32."""
        return self.noun_table.nouns

    @property
    def noun_offset(self) -> Tensor:
        """Where each caption's nouns begin and end, (N + 1,), int64."""
        return self.noun_table.offset

    @property
    def noun_names(self) -> tuple[str, ...]:
        return self.noun_table.names

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each caption, (N,)."""
        return np.diff(self.token_offset.numpy())


def collect_nouns(nouns: Sequence[Sequence[str]]) -> NounTable:
    """Return the table of the nouns of captions."""
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(noun, len(numbers)) for noun in chain.from_iterable(nouns)]
    return NounTable(torch.tensor(flat, dtype=torch.int32), _offsets(len(row) for row in nouns), tuple(numbers))


def write_nouns(folder: Path, key: Key, table: NounTable) -> None:
    """Write nouns alone: another CLIP or language model does not need them extracted again."""
    tensors = {"nouns.safetensors": {"ent": table.nouns, "ent_offset": table.offset}}
    write_sealed(folder, NOUNS_KIND, key, tensors=tensors, texts={NAMES_FILE: list(table.names)}, facts={})


def read_nouns(folder: Path, key: Key) -> NounTable:
    """Read what `write_nouns` wrote; errors as of `open_sealed`."""
    sealed = open_sealed(folder, NOUNS_KIND, key)
    return NounTable(sealed.tensors["ent"], sealed.tensors["ent_offset"], tuple(sealed.texts[NAMES_FILE]))


def build_store(
    folder: str | Path,
    rows: Sequence[CaptionRow],
    *,
    key: Key,
    tokenizer: PreTrainedTokenizerBase,
    encode_texts: EncodeTexts | None,
) -> None:
    """Encode captions and write the store, in the place of an older one.

    Args:
        folder: Of the store.
        rows: N captions with their nouns, 1 or more.
        key: From `store_key`.
        tokenizer: Of the language model.
        encode_texts: Captions -> features, (N, E), any floating dtype, not normalised; None: no features.
    Raises:
        ValueError: If there is no caption, a caption has no token, or features are not finite in fp16.
    """
    if not rows:
        raise ValueError("there are no captions to store; expected at least 1 in the training split")
    captions = [row.caption for row in rows]
    ids = list(_tokenise(tokenizer, captions))
    empty = [index for index, each in enumerate(ids) if not each]
    if empty:
        raise ValueError(f"{len(empty)} captions have no token, the first is number {empty[0]}: {captions[empty[0]]!r}")
    table = collect_nouns([row.nouns for row in rows])
    tensors = {
        "tok": torch.from_numpy(np.fromiter(chain.from_iterable(ids), dtype=np.int32)),
        "tok_offset": _offsets(map(len, ids)),
        "ent": table.nouns,
        "ent_offset": table.offset,
    }
    if encode_texts is not None:
        tensors["feat"] = _checked(encode_texts(captions).to(torch.float16), len(rows))
    facts = {"captions": len(rows), "tokens": len(tensors["tok"]), "width": tensors["feat"].shape[1] if encode_texts else 0}
    write_sealed(
        Path(folder), KIND, key, tensors={"captions.safetensors": tensors}, texts={NAMES_FILE: list(table.names)}, facts=facts
    )
    logger.info("caption store: %d captions, %d tokens, %d nouns: %s", len(rows), len(tensors["tok"]), len(table.names), folder)


def open_store(folder: str | Path, key: Key) -> CaptionStore:
    """Open a store; nothing is read into memory but the names of the nouns.

    Args:
        folder: Written by `build_store`.
        key: What it must belong to.
    Raises:
        StoreDiffers: If it belongs to another key (names the fields).
        StoreDamaged: If it is no store, or a byte of it has changed.
    """
    sealed = open_sealed(Path(folder), KIND, key)
    tensors = sealed.tensors
    missing = [name for name in ("tok", "tok_offset", "ent", "ent_offset") if name not in tensors]
    if missing:
        raise StoreDamaged(f"{folder} has no tensors {', '.join(missing)}")
    table = NounTable(tensors["ent"], tensors["ent_offset"], tuple(sealed.texts[NAMES_FILE]))
    return CaptionStore(tensors.get("feat"), tensors["tok"], tensors["tok_offset"], table, sealed.manifest)


def _tokenise(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Iterator[list[int]]:
    for start in range(0, len(captions), CHUNK):
        yield from tokenizer(captions[start : start + CHUNK], add_special_tokens=False)["input_ids"]


def _offsets(lengths: Iterable[int]) -> Tensor:
    return torch.from_numpy(offsets_of(np.fromiter(lengths, dtype=np.int64)))


def _checked(features: Tensor, n_rows: int) -> Tensor:
    if features.ndim != 2 or len(features) != n_rows or not bool(torch.isfinite(features).all()):
        raise ValueError(
            f"the text tower returned features of shape {tuple(features.shape)}, finite in fp16: "
            f"{bool(torch.isfinite(features).all())}; expected {n_rows} finite rows"
        )
    return features

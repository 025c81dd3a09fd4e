"""A cached background: what identifies it, its pixels, and what the model made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pairs = Mapping[str, Sequence[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of an entry without its pixels and tensors; the header of its file.

    Attributes:
        key: Hash of context, patches and pixels.
        context: What it belongs to.
        patches: Its set of patches B_e, (P,), bool.
        anchors: Codes of its highest-variance patches, at most four.
        total: Sum of the codes of all its patches, modulo 2^64.
        colours: Mean colours of 8 x 8 cells, unit length, (192,), float32.
    """

    key: str
    context: str
    patches: NDArray[np.bool_]
    anchors: tuple[int, ...]
    total: int
    colours: NDArray[np.float32]
    index: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", np.flatnonzero(self.patches))

    @property
    def n_patches(self) -> int:
        """Patches of the background, |B_e|."""
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Payload:
    """What a hit saves computing.

    Attributes:
        tokens: Projected background tokens in raster order, (n_b, d).
        pairs: Keys and values of everything up to the background, per stack (`llm`, `fusion`) and layer; empty without.
    """

    tokens: Tensor
    pairs: Pairs

    @property
    def level(self) -> str:
        """`kv` with keys and values, else `tokens`."""
        return "kv" if self.pairs.get("llm") else "tokens"

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.flat().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Payload:
        """Return a payload of changed tensors."""
        pairs = {name: [(change(keys), change(values)) for keys, values in stack] for name, stack in self.pairs.items()}
        return Payload(change(self.tokens), pairs)

    def without_pairs(self) -> Payload:
        return Payload(self.tokens, {})

    def flat(self) -> dict[str, Tensor]:
        """Name every tensor: `tokens`, and `keys` and `values` of each layer behind stack and number."""
        named = {"tokens": self.tokens}
        for name, stack in self.pairs.items():
            for number, (keys, values) in enumerate(stack):
                named |= {f"{name}.{number}.keys": keys, f"{name}.{number}.values": values}
        return named

    @classmethod
    def from_flat(cls, named: Mapping[str, Tensor], layers: Mapping[str, int]) -> Payload:
        """Build from `flat`'s tensors; `layers` is stack -> number of layers."""
        pairs = {
            name: [(named[f"{name}.{number}.keys"], named[f"{name}.{number}.values"]) for number in range(count)]
            for name, count in layers.items()
        }
        return cls(named["tokens"], pairs)


@dataclass(frozen=True, eq=False)
class Entry:
    """A background with its pixels and payload.

    Attributes:
        facts: What identifies it.
        rows: Pixels of its patches in raster order, (n_b, 3 * p * p), uint8; what decides about a hit.
        payload: What is saved.
    """

    facts: Facts
    rows: NDArray[np.uint8]
    payload: Payload

    @property
    def key(self) -> str:
        return self.facts.key

    @property
    def nbytes(self) -> int:
        """Bytes of tensors and pixels."""
        return self.payload.nbytes + self.rows.nbytes

    def with_payload(self, payload: Payload) -> Entry:
        return replace(self, payload=payload)


def own_memory(tensor: Tensor) -> Tensor:
    """Detach a tensor, and copy it if it is a view of more than itself: budgets count what is really held."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def hash_tensors(named: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of CPU tensors, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

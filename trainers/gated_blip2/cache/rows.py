"""Rows of features in memory: what the frozen towers make of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors names them
_CODES = {dtype: code for code, dtype in DTYPES.items()}
PARTS = ("tokens", "features", "logits")


@dataclass(frozen=True)
class Rows:
    """Features of B images.

    Attributes:
        tokens: Of the ViT, (B, N, Dv), in its dtype.
        features: Pooled style vectors, (B, W), fp32; None without a style encoder.
        logits: Of the style classes, (B, C), fp32; None without classes.
    """

    tokens: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def parts(self) -> dict[str, Tensor]:
        """Return name -> tensor of those that are there."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Rows:
        """Return the rows on a device; nothing changes its dtype."""
        return Rows(**{name: part.to(device, non_blocking=non_blocking) for name, part in self.parts().items()})


@dataclass(frozen=True)
class RowLayout:
    """What every row of a cache looks like.

    Attributes:
        dtype: Of the tokens, as safetensors names it.
        tokens: Their shape per image, (N, Dv).
        features: Width of a style vector; None without a style encoder.
        logits: Style classes; None without any.
    """

    dtype: str
    tokens: tuple[int, int]
    features: int | None
    logits: int | None

    @classmethod
    def of(cls, rows: Rows) -> RowLayout:
        """Describe rows.

        Raises:
            TypeError: If style vectors or logits are not fp32, or the tokens no floats.
        """
        if rows.tokens.dtype not in _CODES:
            raise TypeError(f"ViT tokens are {rows.tokens.dtype}; expected one of {', '.join(map(str, _CODES))}")
        others = {name: part.dtype for name, part in rows.parts().items() if name != "tokens"}
        wrong = [f"{name} {dtype}" for name, dtype in others.items() if dtype != torch.float32]
        if wrong:
            raise TypeError(f"expected fp32 style vectors and logits, got {', '.join(wrong)}")
        features, logits = (None if part is None else part.shape[1] for part in (rows.features, rows.logits))
        return cls(_CODES[rows.tokens.dtype], tuple(rows.tokens.shape[1:]), features, logits)

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return name -> (dtype, shape per image), in the order of a file."""
        widths = {"features": self.features, "logits": self.logits}
        return {"tokens": (self.dtype, self.tokens)} | {name: ("F32", (w,)) for name, w in widths.items() if w is not None}

    def sizes(self) -> dict[str, int]:
        """Return name -> bytes per image."""
        return {name: int(np.prod(shape)) * DTYPES[dtype].itemsize for name, (dtype, shape) in self.shapes().items()}

    @property
    def row_bytes(self) -> int:
        return sum(self.sizes().values())

    def empty(self, count: int) -> Rows:
        """Return rows on the CPU that are yet to be filled."""
        return Rows(**{name: torch.empty(count, *shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in self.shapes().items()})


def bytes_of(rows: Rows) -> dict[str, NDArray[np.uint8]]:
    """Return name -> the bytes of each row, (B, bytes per image); they share the memory of contiguous tensors on the CPU."""
    whole = {name: part.detach().cpu().contiguous() for name, part in rows.parts().items()}
    return {name: part.view(torch.uint8).flatten(1).numpy() for name, part in whole.items()}


def checksum(image: bytes, parts: Iterator[NDArray[np.uint8]]) -> bytes:
    """Hash a row together with the image it belongs to, so that no row can pass for another's.

    Args:
        image: SHA-256 of the image's bytes.
        parts: Bytes of the row, in the order of a file.
    """
    digest = hashlib.sha256(image)
    for part in parts:
        digest.update(part)
    return digest.digest()


def find_broken(rows: Rows) -> list[tuple[int, str]]:
    """Return (index, what) of rows that are not finite."""
    names = {"tokens": "ViT tokens", "features": "style vector", "logits": "style logits"}
    found = {name: _are_finite(part).tolist() for name, part in rows.parts().items()}
    return [
        (index, ", ".join(names[name] for name, finite in found.items() if not finite[index]))
        for index in range(len(rows))
        if not all(finite[index] for finite in found.values())
    ]


def _are_finite(part: Tensor) -> Tensor:
    """Return whether each row is finite, (B,); a finite sum shows it many times faster on a CPU."""
    finite = torch.isfinite(part.flatten(1).sum(dim=1, dtype=torch.float32))
    return finite if finite.all() else torch.isfinite(part).flatten(1).all(dim=1)

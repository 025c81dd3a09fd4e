"""The `PREC` key: which precision the towers run in. Trainables and losses stay fp32 whatever it says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def resolve_precision(prec: str, device: torch.device) -> str:
    """Return what `auto` means on this device; other values pass."""
    if prec != "auto":
        return prec
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast_dtype(prec: str) -> torch.dtype | None:
    """Return the autocast type of a resolved precision, or None for full precision."""
    return {"fp32": None, "bf16": torch.bfloat16, "amp": torch.float16, "fp16": torch.float16}[prec]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Return the context that runs matrix products in `dtype`, or one that does nothing for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return the context inside which autocast is off: classifier, aggregation, fusion and losses run there."""
    return torch.autocast(device.type, enabled=False)


def problems_with_precision(prec: str, key: str, *, use_cuda: bool) -> list[str]:
    """Return the message for a half-precision mode that this machine cannot run."""
    if prec in ("amp", "fp16") and not (use_cuda and torch.cuda.is_available()):
        return [f"{key} is {prec!r}, which needs a GPU; expected auto, fp32 or bf16 on a CPU"]
    return []

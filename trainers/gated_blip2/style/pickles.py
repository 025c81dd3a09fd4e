"""Reads `.pt` files of others, which are pickles, without running anything of theirs.

torch's restricted unpickler (`weights_only=True`) does the reading. Beyond its own list it may make two more things here, in
one call only: paths, which become `pathlib.PurePosixPath` and so can touch no file, and `argparse.Namespace`. Training scripts
store their arguments that way, and torch 2.6 began to refuse such files.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.serialization import get_safe_globals, get_unsafe_globals_in_checkpoint, safe_globals

logger = logging.getLogger(__name__)

CONVERTER = "scripts/convert_style_checkpoint.py"
SAFE_TORCH = (2, 10)  # the first release without known holes in weights_only

_PATH_MODULES = ("pathlib", "pathlib._local")  # the second one is Python 3.13's
_PATH_CLASSES = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
ALLOWED: tuple[tuple[Callable[..., Any], str], ...] = (
    (argparse.Namespace, "argparse.Namespace"),
    *((PurePosixPath, f"{module}.{name}") for module in _PATH_MODULES for name in _PATH_CLASSES),
)
# What torch raises for bytes that are no checkpoint, or a damaged one.
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError,
    ImportError, OSError,
)  # fmt: skip


def load_pickle_safely(path: Path) -> Any:
    """Return what a `.pt` file holds, on the CPU.

    Raises:
        ValueError: If it asks for more than tensors, plain values, paths and arguments (lists what), is TorchScript, or is
            damaged. Nothing of the file has run.
    """
    if is_torchscript(path):
        raise ValueError(f"{path} is a TorchScript archive, a program; store the model's state_dict in its place")
    warn_about_old_torch(path)
    known = get_safe_globals()  # leaving safe_globals forgets its entries, also those that were there before
    with safe_globals([entry for entry in ALLOWED if entry not in known]):
        offenders = _find_offenders(path)
        if offenders:
            raise ValueError(_refusal(path, f"asks for {', '.join(offenders)}"))
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            reason = str(error).strip().splitlines() or [""]
            raise ValueError(_refusal(path, f"cannot be read: {type(error).__name__} {reason[0]}")) from error


def warn_about_old_torch(path: Path) -> None:
    """Say that this torch's restricted unpickler has known holes, if it has."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        logger.warning(
            "%s is a pickle, and weights_only of torch %s has known holes (mended in 2.10): open files of sources you trust, "
            "or safetensors",
            path,
            torch.__version__,
        )


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive; only those carry compiled `code/`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _find_offenders(path: Path) -> list[str]:
    """Return what a file asks for and may not have; empty where torch cannot tell without reading (files before torch 1.6)."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except _UNREADABLE as error:
        logger.debug("%s: no list of globals: %s", path, error)
        return []


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} {reason}. Only tensors, plain values, paths and argparse.Namespace are read; nothing of it has run. If you "
        f"trust its source, write its weights as safetensors: python {CONVERTER} --trust {path.name} {path.stem}.safetensors"
    )

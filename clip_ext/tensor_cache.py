"""Named tensors in a safetensors file: read if whole, else made again and written atomically."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def cached_tensors(
    path: Path, make: Callable[[], Tensors], *, is_valid: Callable[[Tensors], bool], content: str
) -> Tensors:
    """Read tensors from the cache, or make and store them.

    Args:
        path: Safetensors file; its name holds the hash of everything that determines the tensors.
        make: Called on a miss; returns CPU tensors.
        is_valid: Whether the tensors of a readable file have the right names, shapes and values. May raise KeyError.
        content: What the file holds, for the log, e.g. `text features`.
    Returns:
        The tensors, on the CPU.
    """
    if path.exists():
        tensors = _read(path, is_valid, content)
        if tensors is not None:
            logger.info("%s: cache hit: %s", content, path)
            return tensors
    else:
        logger.info("%s: cache miss, computed into %s", content, path)
    tensors = make()
    _write(path, tensors)
    return tensors


def _read(path: Path, is_valid: Callable[[Tensors], bool], content: str) -> Tensors | None:
    """Read a file, or return None with a notice if it is damaged."""
    try:
        tensors = load_safetensors(path.read_bytes())
        if is_valid(tensors):
            return tensors
        reason = "unexpected content"
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        reason = str(error)
    logger.warning("%s: %s is damaged (%s) and is rebuilt", content, path, reason)
    return None


def _write(path: Path, tensors: Tensors) -> None:
    """Write through a temporary file beside `path`, so that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

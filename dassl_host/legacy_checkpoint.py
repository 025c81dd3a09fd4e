"""Read checkpoint files without running anything they contain.

Files written by the bundled engine hold plain data only. Upstream Dassl pickled live scheduler objects into its
checkpoints, which `torch.load(weights_only=True)` refuses; the restricted reader here rebuilds tensors and plain
containers and turns every other name into an inert record, so that those runs can be continued.
"""

from __future__ import annotations

import os
import pickle
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

_SCHEDULER_MODULES = ("torch.optim.lr_scheduler.", "dassl.optim.lr_scheduler.")


def load_checkpoint(fpath: str) -> Any:
    """Return the content of the checkpoint at `fpath`, tensors on the CPU.

    Raises:
        ValueError: If `fpath` is None.
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file is damaged, or holds objects other than data (names the first one).
    """
    if fpath is None:
        raise ValueError("the checkpoint path is None; expected a file")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return _load_legacy(fpath)
    except (EOFError, RuntimeError) as error:  # an empty file, a zip archive cut short
        raise pickle.UnpicklingError(f"cannot read {fpath} as a checkpoint: {error}") from error


def _load_legacy(fpath: str) -> Any:
    """Read a file that holds more than plain data; records are left only where they can be replaced by numbers."""
    try:
        # Naming a pickle module makes torch read with it; ours knows no name outside the table below.
        checkpoint = torch.load(fpath, map_location="cpu", pickle_module=_restricted_pickle())
    except Exception as error:
        raise pickle.UnpicklingError(f"cannot read {fpath} as a checkpoint: {error}") from error
    scheduler = checkpoint.get("scheduler") if isinstance(checkpoint, dict) else None
    if isinstance(scheduler, dict) and _is_scheduler(scheduler.get("successor")):
        scheduler["successor"] = _plain_entries(scheduler["successor"].state)
    for place, record in _find_records(checkpoint, "checkpoint", set()):
        raise pickle.UnpicklingError(f"{fpath} holds the object {record} at {place}; expected tensors and plain data")
    return checkpoint


class _Record:
    """Stands for an object of a class that is not data: keeps what the pickle gives it and does nothing."""

    qualified_name = "object"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _Record:
        record = super().__new__(cls)
        record.state = None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore the items of a dict subclass."""

    def append(self, item: Any) -> None:
        """Ignore the items of a list subclass."""


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that can name tensors, their storages and numpy numbers, nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return the allowed callable, or a class of inert records named after what was asked for."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            storage = getattr(torch, name, None) or getattr(torch.storage, name, None)
            if isinstance(storage, type):
                return storage
        return type(name, (_Record,), {"qualified_name": f"{module}.{name}"})


def _restricted_pickle() -> types.ModuleType:
    """Return what `torch.load` needs of a pickle module."""
    module = types.ModuleType("restricted_pickle")
    module.Unpickler = _RestrictedUnpickler
    module.load = _restricted_load
    return module


def _restricted_load(file: BinaryIO, **kwargs: Any) -> Any:
    return _RestrictedUnpickler(file, **kwargs).load()


def _numpy_number(dtype: np.dtype, data: bytes) -> bool | int | float | complex:
    """Rebuild a pickled numpy scalar as a Python number."""
    if dtype.kind not in "biufc":
        raise pickle.UnpicklingError(f"numpy scalar of type {dtype}; expected a number")
    return np.frombuffer(data, dtype=dtype, count=1)[0].item()


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Rebuild the bytes that pickle protocol 2 stores as latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes stored as {encoding!r}; expected latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _numpy_number,
    ("numpy._core.multiarray", "scalar"): _numpy_number,
    ("_codecs", "encode"): _latin1_bytes,
}


def _is_scheduler(value: Any) -> bool:
    return isinstance(value, _Record) and value.qualified_name.startswith(_SCHEDULER_MODULES)


def _plain_entries(state: Any) -> dict[str, Any]:
    """Keep the numbers and lists of a pickled scheduler; its optimizer and the like are dropped."""
    entries = state.items() if isinstance(state, dict) else ()
    return {key: value for key, value in entries if key != "optimizer" and not any(_find_records(value, key, set()))}


def _find_records(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the place and name of every record inside nested containers."""
    if isinstance(value, _Record) or (isinstance(value, type) and issubclass(value, _Record)):
        yield place, value.qualified_name
    if isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, dict):
            children = [(repr(key), part) for key, item in value.items() for part in (key, item)]
        else:
            children = [(str(index), item) for index, item in enumerate(value)]
        for name, item in children:
            yield from _find_records(item, f"{place}[{name}]", seen)

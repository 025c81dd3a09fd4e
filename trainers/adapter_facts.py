"""An adapter and the model it is stored from or loaded into: facts beside the tensors, compared one by one.

Every language system describes its model as nested dicts of plain values. They are stored with the tensors; loading compares
them with those of the model as it is configured, and one `ValueError` lists every difference before anything is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainers import adapters
from trainers.adapters import Adapter, BaseModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedAdapter:
    """What was loaded.

    Attributes:
        path: Folder that was read.
        epoch: Finished epochs of its training.
        notes: What may differ and does, and what was not compared; to be printed and stored with results.
        record: All of adapter.json.
    """

    path: Path
    epoch: int | None
    notes: tuple[str, ...]
    record: Mapping[str, Any]


def store_adapter(
    run: str | Path,
    epoch: int,
    parameters: Mapping[str, Tensor],
    record: Mapping[str, Any],
    base: BaseModel,
    *,
    keep: str,
    best: bool,
    save_tokenizer: Callable[[Path], Any] | None = None,
) -> list[Path]:
    """Store what was trained and what it belongs to; returns the folders that `keep` asked for.

    Args:
        run: Output folder of the run.
        epoch: Finished epochs, from 1.
        parameters: Stable name -> trainable parameter, all of them.
        record: Facts and scores, in JSON's types; `system` names the trainer.
        base: The model that was tuned.
        keep: `CHECKPOINT.KEEP`.
        best: Store as the best epoch so far, otherwise as a finished epoch.
        save_tokenizer: Writes the tokenizer into the folder it is given.
    Raises:
        OSError: If a folder cannot be written.
    """
    save = adapters.save_best if best else adapters.save_epoch
    return save(run, epoch, parameters, record, base, keep=keep, save_tokenizer=save_tokenizer)


def load_strictly(
    run: str | Path,
    epoch: int | None,
    *,
    system: str,
    parameters: Mapping[str, Tensor],
    needs_tokenizer: bool,
    find_problems: Callable[[Adapter], list[str]],
    find_notes: Callable[[Adapter], list[str]],
) -> LoadedAdapter:
    """Read a stored adapter into a model's trainable parameters, if nothing speaks against it.

    Args:
        run: Run folder, an adapter folder, or a file in that.
        epoch: Finished epochs; None: the best on validation, else the last.
        system: Name of the trainer.
        parameters: Stable name -> trainable parameter of the model as it is built now.
        needs_tokenizer: Refuse an adapter without one.
        find_problems: One message per reason why the adapter does not fit the model.
        find_notes: Called with the adapter after loading: one message per thing that may differ, and does.
    Raises:
        FileNotFoundError: If there is no such adapter, or it is incomplete.
        ValueError: If it does not belong to this model: every difference in one message.
    """
    adapter = adapters.read_adapter(adapters.find_adapter(run, epoch), needs_tokenizer=needs_tokenizer)
    if adapter.record.get("system") != system:
        raise ValueError(f"{adapter.path} belongs to {adapter.record.get('system')!r}; expected {system!r}")
    problems = find_problems(adapter)
    if problems:
        raise ValueError("\n  ".join([f"{adapter.path}: {len(problems)} difference(s) to the model as configured:", *problems]))
    adapters.copy_tensors(adapter, parameters)
    notes = find_notes(adapter)
    for note in notes:
        logger.info("Note: %s", note)
    return LoadedAdapter(adapter.path, adapter.record.get("epoch"), tuple(notes), adapter.record)


def list_differences(prefix: str, stored: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return one message per key whose value differs between what JSON gave back and what is.

    Args:
        prefix: Before the key in a message.
        stored: As read.
        now: Of the model.
        keys: To be compared; one that is missing counts as None.
    """
    pairs = ((key, stored.get(key), as_stored(now.get(key))) for key in keys)
    return [f"{prefix}{key}: stored {old!r}, now {new!r}" for key, old, new in pairs if old != new]


def all_keys(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys that either has, sorted."""
    return sorted(stored.keys() | now.keys())


def as_stored(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return [as_stored(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Adapters: what a language system learned, beside a base model that stays where it is.

`OUT/adapter/{epoch-E,best,last}/` each hold `adapter.safetensors` (the trained tensors), `adapter.json` (what they belong to)
and, if the system stores one, `tokenizer/`. A folder appears whole or not at all, never changes afterwards, and does not
depend on its own name. Which of them a run keeps is `CHECKPOINT.KEEP`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_ext.file_hashes import hash_file
from clip_ext.folders import present_folder, replacing_folder
from trainers.run_facts import installed_versions
from trainers.stored_tensors import find_differences

logger = logging.getLogger(__name__)

FOLDER = "adapter"
TENSORS, RECORD, TOKENIZER = "adapter.safetensors", "adapter.json", "tokenizer"
BEST, LAST = "best", "last"
FORMAT = 1
EPOCH_FOLDER = re.compile(r"epoch-(\d+)")

# CHECKPOINT.KEEP -> whether an adapter per epoch, the best and the last one are kept.
KEEP = {
    "all": (True, True, True),
    "best_last": (False, True, True),
    "best": (False, True, False),
    "last": (False, False, True),
}


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter belongs to.

    Attributes:
        id: Hub id, folder or name it was loaded by; says where it came from and decides nothing.
        fingerprint: SHA-256 over its weights, hexadecimal; decides.
    """

    id: str
    fingerprint: str


@dataclass(frozen=True)
class Adapter:
    """A stored adapter as it was read.

    Attributes:
        path: Its folder.
        tensors: Stable name -> trained tensor, on the CPU.
        record: Content of adapter.json; `base`, `files`, `format` and `versions` are this module's, the rest is the system's.
        tokenizer: Folder of the tokenizer, None if there is none.
    """

    path: Path
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    tokenizer: Path | None

    @property
    def base(self) -> BaseModel:
        """The model that it was trained on."""
        return BaseModel(**self.record["base"])


def problems_with_keep(keep: str, key: str, final_model: str) -> list[str]:
    """Return one message per reason why `CHECKPOINT.KEEP` cannot be followed.

    Args:
        keep: Its value.
        key: Its full name, for the messages.
        final_model: `TEST.FINAL_MODEL`: only `best_val` ever has a best epoch.
    """
    if keep not in KEEP:
        return [f"{key} is {keep!r}; expected one of {', '.join(KEEP)}"]
    if keep == "best" and final_model != "best_val":
        return [f"{key} is 'best', but TEST.FINAL_MODEL is {final_model!r}: no epoch is the best; expected last or best_val"]
    if keep == "last" and final_model == "best_val":
        return [f"{key} is 'last', but TEST.FINAL_MODEL is 'best_val', which tests the best; expected best_last or last_step"]
    return []


def save_epoch(
    run: str | Path,
    epoch: int,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    base: BaseModel,
    *,
    keep: str = "all",
    save_tokenizer: Callable[[Path], Any] | None = None,
) -> list[Path]:
    """Store the adapter of a finished epoch wherever `keep` wants it; returns the folders.

    Args:
        run: Output folder of the run.
        epoch: Finished epochs, from 1.
        tensors: Stable name -> trained tensor; written as they are.
        record: What the system wants to know again, in JSON's types.
        base: That they belong to.
        keep: `CHECKPOINT.KEEP`.
        save_tokenizer: Writes the tokenizer into the folder it is given.
    Raises:
        OSError: If a folder cannot be written (names it); older adapters are then untouched.
    """
    per_epoch, _, last = KEEP[keep]
    names = [f"epoch-{epoch}"] * per_epoch + [LAST] * last
    return _write_all(run, names, tensors, {**record, "epoch": epoch}, base, save_tokenizer)


def save_best(
    run: str | Path,
    epoch: int,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    base: BaseModel,
    *,
    keep: str = "all",
    save_tokenizer: Callable[[Path], Any] | None = None,
) -> list[Path]:
    """Store the adapter of the epoch that is the best so far, if `keep` wants it; arguments as in `save_epoch`."""
    return _write_all(run, [BEST] * KEEP[keep][1], tensors, {**record, "epoch": epoch}, base, save_tokenizer)


def _write_all(
    run: str | Path,
    names: list[str],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    base: BaseModel,
    save_tokenizer: Callable[[Path], Any] | None,
) -> list[Path]:
    """Write the first folder, and the others as links to its files, which nothing ever changes."""
    folders = [Path(run) / FOLDER / name for name in names]
    for number, folder in enumerate(folders):
        if number == 0:
            write_adapter(folder, tensors, record, base, save_tokenizer=save_tokenizer)
        else:
            with replacing_folder(folder) as new:
                shutil.copytree(folders[0], new, copy_function=_link, dirs_exist_ok=True)
    return folders


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    base: BaseModel,
    *,
    save_tokenizer: Callable[[Path], Any] | None = None,
) -> None:
    """Write one adapter folder whole or not at all; an older one of that name is replaced.

    Raises:
        ValueError: If there is no tensor, or one is not finite (names them).
        OSError: If it cannot be written (names it).
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken or not state:
        raise ValueError(f"{folder}: nothing to store" if not state else f"{folder}: not finite: {', '.join(broken)}")

    with replacing_folder(folder) as new:
        try:
            save_file(state, new / TENSORS)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error
        if save_tokenizer is not None:
            save_tokenizer(new / TOKENIZER)
        files = {path.relative_to(new).as_posix(): hash_file(path) for path in _files_below(new)}
        own = {"format": FORMAT, "versions": installed_versions(), "base": asdict(base), "files": files}
        content = {**record, **own}
        (new / RECORD).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_adapter(folder: str | Path, *, needs_tokenizer: bool) -> Adapter:
    """Read an adapter folder and check every file of it against its record.

    A run that trains may replace the folder meanwhile; then it is read again.

    Args:
        folder: Whatever its name.
        needs_tokenizer: Refuse a folder without one.
    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged or of another format: all problems at once.
    """
    while True:
        path = present_folder(Path(folder))
        before = _identity(path)
        try:
            adapter = _read_once(path, needs_tokenizer=needs_tokenizer)
        except (OSError, ValueError):
            if present_folder(Path(folder)) == path and _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return adapter


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from one that took its place; its number alone may be given to a later one."""
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _read_once(path: Path, *, needs_tokenizer: bool) -> Adapter:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no adapter folder {path} (looked in {Path.cwd()})")
    wanted = [path / TENSORS, path / RECORD, *([path / TOKENIZER] if needs_tokenizer else [])]
    missing = [file.name for file in wanted if not file.exists()]
    if missing:
        raise FileNotFoundError(f"{path} is no complete adapter: it has no {', '.join(missing)}")
    record = _read_record(path / RECORD)
    damaged = [name for name, digest in record["files"].items() if not _is_intact(path / name, digest)]
    if damaged:
        raise ValueError(f"{path}: damaged, changed or missing since it was written: {', '.join(damaged)}")
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise ValueError(f"{path / TENSORS} is no safetensors file: {error}") from error
    tokenizer = path / TOKENIZER
    return Adapter(path, tensors, record, tokenizer if tokenizer.is_dir() else None)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
        found = record["format"]
        BaseModel(**record["base"])
        record["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not readable: {type(error).__name__} {error}") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT}")
    return record


def find_adapter(run: str | Path, epoch: int | None = None) -> Path:
    """Return the folder of a run's adapter.

    Args:
        run: Output folder of a run, an adapter folder itself, or its tensors or record.
        epoch: Finished epochs; None: the best on validation, else the last.
    Raises:
        FileNotFoundError: If there is none (lists those present).
    """
    folder = Path(run)
    if folder.name in (TENSORS, RECORD) and folder.is_file():
        folder = folder.parent
    if (folder / RECORD).is_file() and epoch is None:
        return folder
    parent = folder / FOLDER
    names = {path.name for path in parent.glob("*") if not path.name.startswith(".")} | {BEST, LAST}
    present = sorted(name for name in names if (present_folder(parent / name) / RECORD).is_file())
    if epoch is None:
        name = next((name for name in (BEST, LAST) if name in present), None)
        name = name or max((each for each in present if EPOCH_FOLDER.fullmatch(each)), key=_epoch_of, default=None)
    else:
        stored = {_stored_epoch(parent / each): each for each in present}
        name = f"epoch-{epoch}" if f"epoch-{epoch}" in present else stored.get(epoch)
    if name is None:
        asked = "" if epoch is None else f" of epoch {epoch}"
        raise FileNotFoundError(f"{folder} has no adapter{asked}; present: {', '.join(present) or 'none'}")
    return parent / name


def _epoch_of(name: str) -> int:
    return int(EPOCH_FOLDER.fullmatch(name)[1])


def _stored_epoch(folder: Path) -> int | None:
    return _read_record(present_folder(folder) / RECORD).get("epoch")


def problems_with_base(adapter: Adapter, base: BaseModel) -> list[str]:
    """Return a message if the adapter was trained on another base model."""
    stored = adapter.base
    if stored.fingerprint == base.fingerprint:
        return []
    return [
        f"base model: the adapter belongs to {stored.id} ({stored.fingerprint[:12]}), "
        f"MODEL.BACKBONE.NAME is {base.id} ({base.fingerprint[:12]})"
    ]


def problems_with_tensors(adapter: Adapter, parameters: Mapping[str, Tensor]) -> list[str]:
    """Return messages for the differences between stored tensors and trainable parameters: names and shapes."""
    return find_differences(adapter.tensors, parameters)


@torch.no_grad()
def copy_tensors(adapter: Adapter, parameters: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into the parameters of the same names, which have been compared."""
    for name, parameter in parameters.items():
        parameter.copy_(adapter.tensors[name])


def prune_epochs(folder: str | Path, keep: str, newest: str) -> None:
    """Remove older resume files of one registered model once the newest is complete; `KEEP all` removes none.

    Args:
        folder: `OUT/<registered name>`.
        keep: `CHECKPOINT.KEEP`.
        newest: File name of the resume file that stays.
    """
    path = Path(folder)
    if KEEP[keep][0] or not (path / newest).is_file():
        return
    for old in path.glob("model.pth.tar-*"):
        if old.name != newest and old.name.rpartition("-")[2].isdecimal():
            old.unlink()


def clear_leftovers(run: str | Path) -> None:
    """Remove what a run that was killed left of an adapter it was writing; no other process may write there."""
    for part in (Path(run) / FOLDER).glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where links are not possible."""
    try:
        os.link(source, target)
    except OSError as error:
        logger.debug("%s is copied, not linked: %s", target, error)
        shutil.copy2(source, target)


def _is_intact(path: Path, digest: str) -> bool:
    return path.is_file() and hash_file(path) == digest

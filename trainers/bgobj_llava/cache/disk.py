"""Entries on disk: one safetensors file each, written whole or not at all, checked whenever it is read.

A file is named after its entry's key. Its metadata hold the full key and a checksum over all of it; the key is also computed
again from the stored patches and pixels. A file that does not hold what it says is never used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from clip_ext.files import replacing
from trainers.bgobj_llava.cache.entry import Entry, Facts, Payload, hash_tensors
from trainers.bgobj_llava.cache.key import SCHEMA, entry_key, hash_fields

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
PART = ".*.part"  # what a killed writer leaves
STALE_SECONDS = 3600
HEADER_BYTES, TENSOR_BYTES = 4096, 128  # of a file beside its tensors, at most: metadata, and what is said of each tensor
PIXELS = "pixels"
_BROKEN = (SafetensorError, KeyError, ValueError, TypeError, OSError)


class DamagedEntry(ValueError):
    """A file that does not hold what it says."""


class ForeignFile(ValueError):
    """A file that is no entry of this cache's format."""


def write_entry(path: Path, entry: Entry) -> None:
    """Write an entry atomically.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = _apart({name: tensor.cpu().contiguous() for name, tensor in entry.payload.flat().items()})
    tensors[PIXELS] = torch.from_numpy(np.ascontiguousarray(entry.rows))
    facts = entry.facts
    metadata = {
        "schema": SCHEMA,
        "key": facts.key,
        "context": facts.context,
        "n_patches": str(len(facts.patches)),
        "patches": np.packbits(facts.patches).tobytes().hex(),
        "anchors": json.dumps(facts.anchors),
        "total": str(facts.total),
        "colours": facts.colours.astype("<f4").tobytes().hex(),
        "layers": json.dumps({name: len(stack) for name, stack in entry.payload.pairs.items()}),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata | {"checksum": _checksum(metadata, tensors)})


def read_facts(path: Path) -> tuple[Facts, str]:
    """Read an entry's header: (facts, level).

    Raises:
        ForeignFile: If it is no entry.
        DamagedEntry: If it is one that cannot be read.
        FileNotFoundError: If it is gone.
    """
    _check_name(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise DamagedEntry(f"{path} cannot be read: {error}") from error
    return _parse(path, metadata)


def read_rows(path: Path, facts: Facts) -> NDArray[np.uint8]:
    """Read an entry's pixels only.

    Args:
        path: Its file.
        facts: What the file said when it was opened; the pixels have to fit the key.
    Raises:
        DamagedEntry: If they cannot be read, or are not those that were stored.
    """
    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_tensor(PIXELS).numpy()
        key = entry_key(facts.context, facts.patches, rows)
    except _BROKEN as error:
        raise DamagedEntry(f"{path} cannot be read: {error}") from error
    if key != facts.key:
        raise DamagedEntry(f"{path}: its pixels do not belong to its key")
    return rows


def read_entry(path: Path) -> Entry:
    """Read an entry and check all of it; tensors are on the CPU.

    Raises:
        ForeignFile: If it is no entry.
        DamagedEntry: If anything differs from what was written.
        FileNotFoundError: If it is gone.
    """
    _check_name(path)
    try:
        content = path.read_bytes()  # once: another process may replace the file meanwhile
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        tensors = load_safetensors(content)
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise DamagedEntry(f"{path} cannot be read: {error}") from error
    facts, _ = _parse(path, metadata)
    try:
        rows, checksum = tensors[PIXELS].numpy(), metadata["checksum"]
        payload = Payload.from_flat(tensors, json.loads(metadata["layers"]))
        key = entry_key(facts.context, facts.patches, rows)
    except _BROKEN as error:
        raise DamagedEntry(f"{path} is incomplete: {error}") from error
    if key != facts.key:
        raise DamagedEntry(f"{path}: patches or pixels do not belong to its key")
    if _checksum(metadata, tensors) != checksum:
        raise DamagedEntry(f"{path}: header or tensors differ from their checksum")
    return Entry(facts, rows, payload)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with an earlier one, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _check_name(path: Path) -> None:
    if not NAME.fullmatch(path.name):
        raise ForeignFile(f"{path} is no cache entry by its name")


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Hash everything in a file but the checksum itself."""
    header = [f"{name}={value}" for name, value in sorted(metadata.items()) if name != "checksum"]
    return hash_fields([hash_tensors(tensors), *header])


def _parse(path: Path, metadata: dict[str, str]) -> tuple[Facts, str]:
    if metadata.get("schema") != SCHEMA:
        raise ForeignFile(f"{path} has schema {metadata.get('schema')!r}; expected {SCHEMA!r}")
    try:
        n_patches = int(metadata["n_patches"])
        packed = np.frombuffer(bytes.fromhex(metadata["patches"]), dtype=np.uint8)
        patches = np.unpackbits(packed, count=n_patches).astype(bool)
        colours = np.frombuffer(bytes.fromhex(metadata["colours"]), dtype="<f4").astype(np.float32)
        anchors = tuple(int(code) for code in json.loads(metadata["anchors"]))
        facts = Facts(metadata["key"], metadata["context"], patches, anchors, int(metadata["total"]), colours)
        level = "kv" if json.loads(metadata["layers"]).get("llm") else "tokens"
    except _BROKEN as error:
        raise DamagedEntry(f"{path}: its header cannot be read: {error}") from error
    if facts.key != path.stem or not facts.anchors or not facts.n_patches:
        raise DamagedEntry(f"{path} holds the entry {facts.key[:12]}...; its name and its header disagree")
    return facts, level


class DiskTier:
    """A folder of entries with a byte budget; the file that was used longest ago goes first.

    Args:
        folder: Made if it is not there.
        budget: Bytes; files of other contexts count, too.
        keeps_kv: Whether keys and values are written beside the tokens.
    """

    name = "disk"

    def __init__(self, folder: Path, budget: int, *, keeps_kv: bool = True) -> None:
        self.folder, self.budget, self._keeps_kv = folder, budget, keeps_kv
        folder.mkdir(parents=True, exist_ok=True)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._levels: dict[str, str] = {}
        self.written: set[str] = set()  # by this process

    def scan(self) -> tuple[list[Facts], int, int]:
        """Read all headers anew: (entries, damaged files, foreign files). What killed writers left is removed."""
        remove_stale_parts(self.folder)
        self._sizes.clear()
        self._levels.clear()
        found, damaged, foreign = [], 0, 0
        for path in visible_files(self.folder):
            try:
                facts, level = read_facts(path)
                self._sizes[facts.key], self._levels[facts.key] = path.stat().st_size, level
                found.append(facts)
            except FileNotFoundError:
                continue
            except ForeignFile as error:
                foreign += 1
                logger.info("Cache: skipped, %s", error)
            except DamagedEntry as error:
                damaged += 1
                logger.warning("Cache: skipped, %s", error)
        return found, damaged, foreign

    @property
    def nbytes(self) -> int:
        return sum(self._sizes.values())

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def level(self, key: str) -> str:
        """Return `kv` or `tokens`."""
        return self._levels[key]

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def size_of(self, entry: Entry) -> int:
        """Return the bytes an entry takes here at most."""
        kept = self._kept(entry)
        return kept.nbytes + HEADER_BYTES + TENSOR_BYTES * len(kept.payload.flat())

    def size_held(self, key: str) -> int:
        """Return the bytes of an entry's file, 0 if it has none."""
        return self._sizes.get(key, 0)

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is here with all that would be kept of it."""
        return self._levels.get(entry.key) in (self._kept(entry).payload.level, "kv")

    def put(self, entry: Entry) -> bool:
        """Write an entry, unless it is there already with all that is kept; False if the disk does not take it."""
        if self.holds(entry):
            self.touch(entry.key)
            return True
        kept = self._kept(entry)
        try:
            write_entry(self.path(entry.key), kept)
            size = self.path(entry.key).stat().st_size
        except (OSError, SafetensorError) as error:
            logger.warning("Cache: an entry is not written to disk: %s", error)
            return False
        self._sizes[entry.key], self._levels[entry.key] = size, kept.payload.level
        self._sizes.move_to_end(entry.key)
        self.written.add(entry.key)
        return True

    def touch(self, key: str) -> None:
        """Make an entry the last one to go, for later runs as well."""
        self._sizes.move_to_end(key)
        try:
            os.utime(self.path(key))
        except OSError as error:
            logger.debug("%s keeps its time: %s", self.path(key), error)

    def oldest(self, pinned: Collection[str]) -> str | None:
        """Return the key of the entry to go first."""
        return next((key for key in self._sizes if key not in pinned), None)

    def remove(self, key: str) -> None:
        """Delete an entry's file, if it is there."""
        self._sizes.pop(key, None)
        self._levels.pop(key, None)
        self.written.discard(key)
        self.path(key).unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Leave a file where it is and use it no more."""
        self._sizes.pop(key, None)
        self._levels.pop(key, None)

    def _kept(self, entry: Entry) -> Entry:
        return entry if self._keeps_kv else entry.with_payload(entry.payload.without_pairs())


def remove_stale_parts(folder: Path, older_than_s: float = STALE_SECONDS) -> int:
    """Delete temporary files of writers that were killed, and return how many; young ones may still be written to."""
    limit = time.time() - older_than_s
    stale = [path for seconds, path in _by_age(folder.glob(PART)) if seconds < limit]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder but for hidden ones, the one that was used longest ago first."""
    return [path for _, path in _by_age(path for path in folder.iterdir() if not path.name.startswith("."))]


def _by_age(paths: Iterable[Path]) -> list[tuple[float, Path]]:
    """Return (time of change, file), the oldest first. Other processes may delete files meanwhile."""
    found = []
    for path in paths:
        try:
            if path.is_file():
                found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue
    return sorted(found)

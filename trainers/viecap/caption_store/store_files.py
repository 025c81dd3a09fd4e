"""Folders that say what they hold: tensors and JSON files with a manifest that lists their hashes and the key they belong to.

A folder appears whole or not at all. Reading one checks every byte, then maps the tensors into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_ext.file_hashes import hash_file
from clip_ext.folders import present_folder, replacing_folder

MANIFEST = "manifest.json"

Key = Mapping[str, str]


class StoreDamaged(ValueError):
    """A folder is not what its manifest says, or has none."""


class StoreDiffers(ValueError):
    """A folder is whole but belongs to another key.

    Attributes:
        fields: Names of the fields that differ.
    """

    def __init__(self, message: str, fields: list[str]) -> None:
        super().__init__(message)
        self.fields = fields


@dataclass(frozen=True)
class SealedFolder:
    """Content of a folder.

    Attributes:
        tensors: Name -> tensor, on the CPU, mapped from the file: read only what is used, change nothing.
        texts: File name -> content of the JSON files.
        manifest: `kind`, `key`, `files` (size and SHA-256 of each), `facts`.
    """

    tensors: dict[str, Tensor]
    texts: dict[str, Any]
    manifest: dict[str, Any]


def digest_of(key: Key) -> str:
    """Hash a key's fields, 64 hex digits."""
    return hashlib.sha256(_canonical(dict(key))).hexdigest()


def write_sealed(
    folder: Path, kind: str, key: Key, *, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, Any], facts: Mapping
) -> None:
    """Write a folder, in the place of an older one.

    Args:
        folder: Where.
        kind: What it holds, one word.
        key: Everything that its content depends on.
        tensors: Name of each safetensors file -> its tensors.
        texts: Name of each JSON file -> its content.
        facts: Further figures, of JSON's types.
    """
    with replacing_folder(Path(folder)) as new:
        for name, content in tensors.items():
            save_file({each: tensor.contiguous() for each, tensor in content.items()}, new / name)
        for name, content in texts.items():
            (new / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        files = {name: {"size": (new / name).stat().st_size, "sha256": hash_file(new / name)} for name in (*tensors, *texts)}
        manifest = {"kind": kind, "key": dict(key), "files": files, "facts": dict(facts)}
        manifest["seal"] = hashlib.sha256(_canonical(manifest)).hexdigest()
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def open_sealed(folder: Path, kind: str, key: Key) -> SealedFolder:
    """Read a folder that belongs to a key.

    Args:
        folder: Written by `write_sealed`.
        kind: What it must hold.
        key: What it must belong to.
    Raises:
        StoreDiffers: If it belongs to another key (names the fields with both values).
        StoreDamaged: If it is no such folder, or a byte of it has changed.
    """
    folder = present_folder(Path(folder))
    manifest = _read_manifest(folder, kind)
    fields = [name for name in sorted({*key, *manifest["key"]}) if key.get(name) != manifest["key"].get(name)]
    if fields:
        values = [f"{name} is {_short(manifest['key'].get(name))}, expected {_short(key.get(name))}" for name in fields]
        raise StoreDiffers(f"{folder} belongs to other data or settings: {'; '.join(values)}", fields)
    _check_files(folder, manifest["files"])
    tensors: dict[str, Tensor] = {}
    texts: dict[str, Any] = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            tensors |= _map_tensors(folder / name)
        else:
            texts[name] = json.loads((folder / name).read_text(encoding="utf-8"))
    return SealedFolder(tensors, texts, manifest)


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        seal = manifest.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreDamaged(f"{folder} has no readable {MANIFEST}: {error!r}") from error
    if seal != hashlib.sha256(_canonical(manifest)).hexdigest():
        raise StoreDamaged(f"{folder / MANIFEST} has changed since it was written")
    if manifest["kind"] != kind:
        raise StoreDamaged(f"{folder} holds {manifest['kind']}, expected {kind}")
    return manifest


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise StoreDamaged naming every file that is not as it was written."""
    problems = []
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["size"]:
            problems.append(f"{name} is missing" if size is None else f"{name} has {size} bytes, expected {expected['size']}")
        elif hash_file(path) != expected["sha256"]:
            problems.append(f"{name} has other bytes than were written")
    if problems:
        raise StoreDamaged(f"{folder} is damaged: {'; '.join(problems)}")


def _map_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise StoreDamaged(f"{path} is no safetensors file: {error}") from error


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode("utf-8")


def _short(value: str | None) -> str:
    """Shorten hashes only: other values are words."""
    if value is None:
        return "absent"
    return f"{value[:12]}..." if len(value) == 64 else repr(value)

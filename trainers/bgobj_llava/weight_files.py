"""The safetensors of a model folder, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from trainers.adapters import hash_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_hashes: dict[tuple[str, int, int], str] = {}


def find_weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model folder, sorted; empty if there are none.

    Raises:
        FileNotFoundError: If its index names files that are not there (lists them).
    """
    if (folder / INDEX).is_file():
        weights = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        files = sorted(folder / name for name in set(weights.values()))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{folder / INDEX} names weight files that are not there: {', '.join(missing)}")
        return files
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def hash_weight_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 over the hashes of weight files, hexadecimal; each file version is read once per process."""
    return hashlib.sha256("".join(_hash_once(file) for file in files).encode()).hexdigest()


def _hash_once(file: Path) -> str:
    stat = file.stat()
    key = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = hash_file(file)
    return _hashes[key]

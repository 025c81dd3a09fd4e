"""The safetensors of a model folder, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from clip_ext.file_hashes import FileHashes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_hashes = FileHashes()  # of this process


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
    return hashlib.sha256("".join(_hashes.of(file) for file in files).encode()).hexdigest()

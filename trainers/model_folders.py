"""Folders of Hugging Face models: found by name, their safetensors and the fingerprint of these.

Every name ends in a local folder of configuration, tokenizer and safetensors; nothing else is read. With HF_HUB_OFFLINE=1 the
hub is not asked, and only what its cache holds can be named.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_ext.file_hashes import FileHashes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # no pickles

_hashes = FileHashes()  # of this process


def find_model_folder(
    name: str, revision: str = "", *, key: str, shipped: Mapping[str, Path], ids: Sequence[str] = (), example: str
) -> Path:
    """Return the local folder of a model, fetched from the hub if it has to be.

    Args:
        name: Local folder, name of a shipped model, or hub id.
        revision: Branch, tag or commit of a hub id; "" = the newest.
        key: Config key that names it, for messages.
        shipped: Name -> folder of the models that come with this package.
        ids: Hub ids without an owner, `gpt2` for instance.
        example: Of a hub id, for messages.
    Raises:
        FileNotFoundError: If a name that can be no hub id is no folder.
        OSError: If the hub has no such model, or cannot be asked.
    """
    folder = shipped.get(name, Path(name))
    if folder.is_dir():
        return folder
    if name in shipped or not (name in ids or HUB_ID.fullmatch(name)):
        raise FileNotFoundError(
            f"{key} is {name!r}: there is no folder {folder} (looked in {Path.cwd()}); "
            f"expected a folder, {', '.join(shipped)}, or a hub id such as {example}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"{key} is {name!r}: no such folder here, and not to be had from the hub "
            f"(revision {revision or 'newest'}; HF_HUB_OFFLINE=1 allows its cache only): {reason}"
        ) from error


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

"""Facts that make a run repeatable: code, versions, device and data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

CHECKOUT = Path(__file__).resolve().parent.parent


def splits_of(dataset: Any) -> dict[str, list[Any]]:
    """The four lists of a Dassl data set; one that it lacks is empty."""
    return {name: list(getattr(dataset, name) or ()) for name in ("train_x", "train_u", "val", "test")}


def hash_data(splits: dict[str, list[Any]]) -> str:
    """SHA-256 of what is in which split, independent of where the images lie and of how they were listed.

    One line per item, `split<TAB>path<TAB>label<TAB>class`, sorted; paths are POSIX and relative to the deepest folder that
    holds all images. Items with extras (votes, questions, boxes) have them as JSON in a fifth column.
    """
    paths = [os.path.abspath(item.impath) for items in splits.values() for item in items]
    top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    lines = sorted(
        f"{split}\t{Path(os.path.relpath(os.path.abspath(item.impath), top)).as_posix()}\t{item.label}\t{item.classname}"
        + _write_extras(getattr(item, "extras", None))
        for split, items in splits.items()
        for item in items
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_extras(extras: Mapping[str, Any] | None) -> str:
    return f"\t{json.dumps(dict(extras), sort_keys=True)}" if extras else ""


def git_state() -> dict[str, str | bool | None]:
    """Commit of the checkout that runs, and whether it has uncommitted changes; None for both outside a repository."""
    top, commit, changes = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if not top or Path(top).resolve() != CHECKOUT or commit is None:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(CHECKOUT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def installed_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide numbers; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "open_clip_torch", "transformers", "peft"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def device_name(cfg: CfgNode) -> str:
    """The device that Dassl will choose."""
    return torch.cuda.get_device_name(0) if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"

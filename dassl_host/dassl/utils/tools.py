"""Files, images, seeds and names."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def mkdir_if_missing(dirname: str) -> None:
    """Create the folder and its parents unless it is there; "" is the working folder."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Return True if `fpath` is a file; warn if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def read_json(fpath: str) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(fpath).read_text(encoding="utf-8"))


def write_json(obj: Any, fpath: str) -> None:
    """Write `obj` as indented JSON; missing folders are made."""
    mkdir_if_missing(os.path.dirname(fpath))
    Path(fpath).write_text(json.dumps(obj, indent=4), encoding="utf-8")


def set_random_seed(seed: int) -> None:
    """Seed `random`, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def download_url(url: str, dst: str) -> None:
    """Download `url` to the file `dst`, with a progress bar on a terminal."""
    from urllib.request import urlretrieve

    from tqdm import tqdm

    print(f'* url="{url}"')
    print(f'* destination="{dst}"')
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:

        def report(blocks: int, block_size: int, total: int) -> None:
            bar.total = total if total > 0 else None
            bar.update(blocks * block_size - bar.n)

        urlretrieve(url, dst, report)


def read_image(path: str) -> Image.Image:
    """Return the image at `path` as RGB.

    Raises:
        OSError: If the file cannot be read as an image (names the path).
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        if str(path) in str(error):
            raise
        raise OSError(f"cannot read the image {path}: {error}") from error


def collect_env_info() -> str:
    """Return versions and hardware as text."""
    import PIL
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Return the names in the folder `path` that do not start with a dot, sorted if asked."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of `b` nearest to `a` (the last of equals), None if `b` is empty."""
    nearest, best = None, 0.0
    for candidate in b:
        similarity = SequenceMatcher(None, a, candidate).ratio()
        if similarity >= best:
            nearest, best = candidate, similarity
    return nearest


def check_availability(requested: str, available: list[str]) -> None:
    """Check that `requested` is one of `available`.

    Raises:
        ValueError: If not; names the request, all choices and the nearest one.
    """
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(f"got [{requested}]; expected one of {available} (do you mean [{nearest}]?)")


def tolist_if_not(x: Any) -> list[Any]:
    """Return `x` if it is a list, else a list holding it."""
    return x if isinstance(x, list) else [x]

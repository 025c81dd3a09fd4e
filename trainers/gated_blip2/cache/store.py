"""The feature cache as it is read: one row per image, found by the hash of the image's bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from clip_ext.file_hashes import FileHashes
from clip_ext.files import replacing
from trainers.gated_blip2.cache.key import CacheDiffers, CacheKey
from trainers.gated_blip2.cache.rows import RowLayout, Rows, bytes_of
from trainers.gated_blip2.cache.shards import PREFIX, SUFFIX, CacheDamaged, Shard

HEADER = "cache.json"
FORMAT = 1
MAX_LISTED = 10
_HASH_THREADS = 4
_WORTH_THREADS = 64  # files

_hashes = FileHashes()  # of this process


class FeatureCache:
    """Rows of a folder as it was when this was opened; they are mapped into memory, and read when they are asked for.

    Args:
        folder: Of the cache.
        key: That its files must have.
    Raises:
        CacheDamaged: If a file is not what was written (names it).
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.folder, self.key = folder, key
        self._shards = [Shard(path, key.digest) for path in shard_files(folder)]
        layouts = {shard.layout for shard in self._shards}
        if len(layouts) > 1:
            raise CacheDamaged(f"{folder} holds rows of several kinds: {'; '.join(sorted(map(str, layouts)))}")
        self.layout: RowLayout | None = next(iter(layouts), None)
        self._starts = np.cumsum([0, *(len(shard.images) for shard in self._shards)])
        self._rows: dict[str, int] = {}
        for number, image in enumerate(image for shard in self._shards for image in shard.images):
            self._rows.setdefault(image, number)  # of an image in two files, the first one counts
        self._paths: dict[int, str] = {}
        self.n_read = 0  # rows, since it was opened

    def __len__(self) -> int:
        """Images that have a row."""
        return len(self._rows)

    def __contains__(self, image: str) -> bool:
        """Whether the image of a SHA-256 has a row."""
        return image in self._rows

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Return the files whose image has no row."""
        return [path for path, image in zip(paths, hash_images(paths), strict=True) if image not in self]

    def rows_of(self, paths: Sequence[str]) -> list[int]:
        """Return the row of each file's image, as the file is now; equal images have the same one.

        Raises:
            ValueError: If images have no row (names the first ten files).
            FileNotFoundError: If files are missing.
        """
        images = hash_images(paths)
        missing = [path for path, image in zip(paths, images, strict=True) if image not in self]
        if missing:
            raise ValueError(
                f"{len(missing)} images have no row in {self.folder}, for example {', '.join(missing[:MAX_LISTED])}; files "
                "that changed since the cache was built need a new start of the run"
            )
        rows = [self._rows[image] for image in images]
        self._paths.update(zip(rows, paths, strict=True))
        return rows

    def read(self, rows: Sequence[int] | Tensor) -> Rows:
        """Copy rows together; nothing else of their files is read.

        Args:
            rows: From `rows_of`, B of them, in any order.
        Returns:
            Tensors of their own on the CPU, in the order of `rows`.
        Raises:
            IndexError: If there is no such row.
            CacheDamaged: If a row is not the one that was written (names file and image).
        """
        numbers = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        wrong = [number for number in numbers if not 0 <= number < self._starts[-1]]
        if wrong or self.layout is None:
            raise IndexError(f"{self.folder} has {self._starts[-1]} rows, counted from 0; asked for {wrong}")
        found = self.layout.empty(len(numbers))
        parts = bytes_of(found)
        for place, number in enumerate(numbers):
            self._copy(number, {name: part[place] for name, part in parts.items()})
        self.n_read += len(numbers)
        return found

    def _copy(self, number: int, parts: dict[str, np.ndarray]) -> None:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        try:
            self._shards[shard].copy_row(number - int(self._starts[shard]), parts)
        except CacheDamaged as error:
            path = self._paths.get(number)
            raise CacheDamaged(f"{error} (it belongs to {path})" if path else str(error)) from error


def open_cache(folder: str | Path, key: CacheKey) -> FeatureCache:
    """Open a cache that is there.

    Args:
        folder: From `cache_folder`, or any that was built.
        key: What it must belong to.
    Raises:
        FileNotFoundError: If there is none.
        CacheDiffers: If it belongs to something else (names the fields with both values).
        CacheDamaged: If a file is not what was written (names it).
    """
    check_header(Path(folder), key)
    return FeatureCache(Path(folder), key)


def check_header(folder: Path, key: CacheKey) -> None:
    """Raise the errors of `open_cache` that concern the whole folder."""
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"there is no feature cache {folder.absolute()}; scripts/build_feature_cache.py makes one")
    try:
        content = json.loads(path.read_text("utf-8"))
        stored, form = dict(content["fields"]), content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CacheDamaged(f"{path} cannot be read ({reason}); delete {folder} to build it again") from error
    differences = key.differences(stored) + ([] if form == FORMAT else [f"format is {form}, expected {FORMAT}"])
    if differences:
        raise CacheDiffers(
            f"{folder} holds features of something else: {'; '.join(differences)}; another TRAINER.GATEDBLIP2.CACHE.DIR, or "
            "deleting this folder, makes room for those of this run",
            differences,
        )


def write_header(folder: Path, key: CacheKey) -> None:
    """Begin a cache: make its folder and say what it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "digest": key.digest, "fields": key.fields}
    with replacing(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def shard_files(folder: Path) -> list[Path]:
    """Return the complete files of rows, in the order of their rows."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def hash_images(paths: Iterable[str]) -> list[str]:
    """Return the SHA-256 of each file's bytes; every version of a file is read once per process.

    Raises:
        FileNotFoundError: If files are missing (names the first ten).
    """
    paths = list(map(os.fspath, paths))
    unique = list(dict.fromkeys(paths))
    missing = [path for path in unique if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are missing, for example {', '.join(missing[:MAX_LISTED])}")
    if len(unique) < _WORTH_THREADS:
        found = map(_hashes.of, unique)
        by_path = dict(zip(unique, found, strict=True))
    else:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            found = tqdm(pool.map(_hashes.of, unique), total=len(unique), desc="image hashes", leave=False, disable=None)
            by_path = dict(zip(unique, found, strict=True))
    return [by_path[path] for path in paths]

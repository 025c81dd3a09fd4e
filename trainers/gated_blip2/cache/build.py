"""Building a feature cache: what is missing is encoded and written, file by file; a build that was ended goes on.

Every file appears whole or not at all and is named after its images, and its batches begin anew with it. So a build that was
killed ends in the files of one that was not, and two processes that build the same cache write the same files.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from clip_ext.files import replacing
from trainers.gated_blip2.cache.key import KEYS, CacheKey
from trainers.gated_blip2.cache.rows import RowLayout, Rows, find_broken
from trainers.gated_blip2.cache.shards import HASH_BYTES, PREFIX, TABLES, ShardWriter, shard_name
from trainers.gated_blip2.cache.store import HEADER, FeatureCache, check_header, hash_images, open_cache, write_header

logger = logging.getLogger(__name__)

STALE_S = 3600  # temporary files that nobody has written to for so long were left by a build that was killed
_BATCHES_AHEAD = 2  # decoded while one is encoded

Encode = Callable[[list[Any]], Rows]


def build_cache(
    folder: str | Path,
    key: CacheKey,
    paths: Sequence[str],
    encode: Encode,
    *,
    shard_images: int,
    batch_size: int,
    load: Callable[[str], Any] | None = None,
    threads: int = 4,
) -> FeatureCache:
    """Open the cache of images, after adding those that it lacks.

    Rows are computed in batches of `batch_size`, in the order of `paths`, each distinct image once; the last batch of a file is
    shorter where `batch_size` does not divide the number of its images. A row has the bits that its image gets at its place in
    that batch; in batches of another size, or at other places, matrix products are rounded otherwise (on CPUs, too), so a live
    row then differs in the last bits. With all images there, `encode` and `load` are never called.

    Args:
        folder: From `cache_folder`; made if it is not there.
        key: What the rows belong to.
        paths: Image files; equal images share a row.
        encode: Files, or what `load` made of them -> their rows, on any device; called without recording gradients.
        shard_images: Images per file, 1 or more.
        batch_size: Images per call of `encode`, 1 or more.
        load: File -> what `encode` gets for it, such as its two views; called in threads, ahead of `encode`. None: the file.
        threads: That call `load`.
    Raises:
        CacheDiffers: If the folder belongs to something else.
        CacheDamaged: If one of its files is not what was written.
        FileNotFoundError: If images are missing.
        ValueError: If an image cannot be read or changed while it was encoded, or its row is not finite (names the image).
        OSError: If the disk has too little space (says how much is needed and free).
    """
    folder = Path(folder)
    if (folder / HEADER).is_file():
        check_header(folder, key)
    else:
        _tell_of_others(folder, key)
        write_header(folder, key)
    files: dict[str, str] = {}
    for image, path in zip(hash_images(paths), paths, strict=True):
        files.setdefault(image, path)
    cache = open_cache(folder, key)
    wanted = [image for image in files if image not in cache]
    logger.info("feature cache: %d of %d images are in %s", len(files) - len(wanted), len(files), folder)
    if not wanted:
        return cache
    _Build(folder, key.digest, files, _Encoder(encode, batch_size, load, threads), cache.layout).run(wanted, shard_images)
    return open_cache(folder, key)


@dataclass(frozen=True)
class _Encoder:
    """How files become rows; see `build_cache`."""

    encode: Encode
    batch_size: int
    load: Callable[[str], Any] | None
    threads: int

    def batches(self, paths: Sequence[str]) -> Iterator[tuple[list[str], Rows]]:
        """Yield (files, their rows), batch by batch.

        Raises:
            ValueError: If a file is no readable image (names it).
        """
        starts = range(0, len(paths), self.batch_size)
        for batch, inputs in self._loaded([list(paths[start : start + self.batch_size]) for start in starts]):
            try:
                with torch.no_grad():
                    rows = self.encode(inputs)
            except OSError as error:
                raise ValueError(f"an image of {', '.join(batch)} cannot be encoded: {error}") from error
            if len(rows) != len(batch):
                raise ValueError(f"{len(rows)} rows for {len(batch)} images")
            yield batch, rows

    def _loaded(self, batches: list[list[str]]) -> Iterator[tuple[list[str], list[Any]]]:
        """Yield (files, what `encode` gets), loaded a little ahead."""
        if self.load is None:
            yield from ((batch, batch) for batch in batches)
            return
        pool = ThreadPoolExecutor(self.threads)
        waiting: deque = deque()
        try:
            for batch in chain(batches, [None] * _BATCHES_AHEAD):
                if batch is not None:
                    waiting.append((batch, [pool.submit(self._load_one, path) for path in batch]))
                if waiting and (batch is None or len(waiting) > _BATCHES_AHEAD):
                    files, futures = waiting.popleft()
                    yield files, [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)

    def _load_one(self, path: str) -> Any:
        try:
            return self.load(path)
        except OSError as error:
            raise ValueError(f"the image {path} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Build:
    """One process' part in building a cache.

    Attributes:
        folder: Of the cache.
        key: Digest of what the rows belong to.
        files: SHA-256 of an image -> a file of it.
        encoder: Makes the rows.
        layout: Of the rows that are there; None if there are none.
    """

    folder: Path
    key: str
    files: Mapping[str, str]
    encoder: _Encoder
    layout: RowLayout | None

    def run(self, wanted: Sequence[str], shard_images: int) -> None:
        """Write the rows of images that have none."""
        _remove_stale_parts(self.folder)
        with tqdm(total=len(wanted), desc="feature cache", unit=" images", leave=False, disable=None) as bar:
            for start in range(0, len(wanted), shard_images):
                images = wanted[start : start + shard_images]
                path = self.folder / shard_name(images)
                if path.is_file():  # another process has written it meanwhile
                    bar.update(len(images))
                else:
                    self._write(path, images, len(wanted) - start, bar)

    def _write(self, path: Path, images: Sequence[str], n_left: int, bar: tqdm) -> None:
        encoded = self._checked(images)
        first = next(encoded)
        layout = self.layout or RowLayout.of(first)
        _check_space(self.folder, n_left, layout)
        try:
            with replacing(path) as temporary, temporary.open("wb") as stream:
                writer = ShardWriter(stream, layout, images, self.key)
                for rows in chain([first], encoded):
                    writer.add(rows)
                    bar.update(len(rows))
                writer.close()
        except OSError as error:  # Windows does not replace a file that another process has written meanwhile and reads
            if not path.is_file():
                raise
            logger.debug("%s is another process': %s", path, error)

    def _checked(self, images: Sequence[str]) -> Iterator[Rows]:
        """Yield rows that are finite and belong to these images, batch by batch."""
        done = 0
        for paths, rows in self.encoder.batches([self.files[image] for image in images]):
            broken = [f"{paths[index]} ({what})" for index, what in find_broken(rows)]
            if broken:
                raise ValueError(
                    f"features are not finite in {rows.tokens.dtype} for {', '.join(broken)}; "
                    "TRAINER.GATEDBLIP2.PREC bf16 (or fp32) has the range that they need"
                )
            expected = images[done : done + len(paths)]
            changed = [path for path, was, now in zip(paths, expected, hash_images(paths), strict=True) if was != now]
            if changed:
                raise ValueError(f"images have changed while they were encoded: {', '.join(changed)}; start again")
            done += len(paths)
            yield rows


def _check_space(folder: Path, n_images: int, layout: RowLayout) -> None:
    needed, free = n_images * (layout.row_bytes + HASH_BYTES * len(TABLES)), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the features of {n_images} images need {needed / 1e9:.2f} GB below {folder.absolute()}, where {free / 1e9:.2f} "
            f"GB are free; make room, name a folder on another disk in {KEYS}.DIR, or set {KEYS}.ENABLE False"
        )
    logger.info("feature cache: %d images to encode, %.2f GB", n_images, needed / 1e9)


def _remove_stale_parts(folder: Path) -> None:
    """Delete what killed builds left; younger files may be another process'."""
    for path in folder.glob(f".{PREFIX}*.part"):
        if path.stat().st_mtime < time.time() - STALE_S:
            path.unlink(missing_ok=True)


def _tell_of_others(folder: Path, key: CacheKey) -> None:
    """Say what keeps the nearest cache beside a new one from being used."""
    others = []
    for path in folder.parent.glob(f"*/{HEADER}"):
        try:
            others.append((key.differences(json.loads(path.read_text("utf-8"))["fields"]), path.parent))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.debug("%s is no header of a cache: %s", path, error)
    if others:
        differences, nearest = min(others, key=lambda other: len(other[0]))
        logger.info("feature cache: a new one; %s is another one's: %s", nearest, "; ".join(differences))

"""Files of rows: safetensors, written in one pass, mapped into memory, checked as they are read.

A file holds `tokens`, `features` and `logits` of its images, their `images` (SHA-256 of their bytes) and a checksum per row. It
is named after its images, so that two processes never write different rows under one name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainers.gated_blip2.cache.rows import PARTS, RowLayout, Rows, bytes_of, checksum

SCHEMA = "gated-blip2-features-1"
PREFIX, SUFFIX = "rows-", ".safetensors"
HASH_BYTES = 32
TABLES = ("images", "checksums")
_ALIGNMENT = 64  # of the first tensor in a file
_REMEDY = "delete this file; the next run computes its rows again"


class CacheDamaged(ValueError):
    """A file does not hold what was written."""


def shard_name(images: Sequence[str]) -> str:
    """Return the file name of a shard of images, which are given by their SHA-256."""
    return f"{PREFIX}{hashlib.sha256(''.join(images).encode()).hexdigest()[:24]}{SUFFIX}"


class ShardWriter:
    """Writes the rows of known images one after another; never holds more than it is given.

    Args:
        stream: An empty file.
        layout: Of every row.
        images: SHA-256 of the images, hexadecimal, in the order of their rows.
        key: Digest of the cache's key.
    """

    def __init__(self, stream: BinaryIO, layout: RowLayout, images: Sequence[str], key: str) -> None:
        self._stream, self._layout, self._key = stream, layout, key
        self._images = [bytes.fromhex(image) for image in images]
        self._checksums: list[bytes] = []
        data = len(_pack(self._header("0" * 64)))
        self._next = {name: data + start for name, (start, _) in _places(layout, len(images)).items()}

    def add(self, rows: Rows) -> None:
        """Write the next rows.

        Raises:
            ValueError: If they have another layout than the others, or there are too many.
            OSError: If the disk does not take them.
        """
        found = RowLayout.of(rows)
        if found != self._layout:
            raise ValueError(f"rows of {found} in a cache of {self._layout}")
        parts, first = bytes_of(rows), len(self._checksums)
        if first + len(rows) > len(self._images):
            raise ValueError(f"{first + len(rows)} rows for {len(self._images)} images")
        for index in range(len(rows)):
            self._checksums.append(checksum(self._images[first + index], (part[index] for part in parts.values())))
        for name, part in parts.items():
            self._write(name, part.reshape(-1))

    def close(self) -> None:
        """Write what comes last: which rows there are, their checksums, the header.

        Raises:
            ValueError: If rows are missing.
        """
        if len(self._checksums) != len(self._images):
            raise ValueError(f"{len(self._checksums)} rows for {len(self._images)} images")
        images, checksums = b"".join(self._images), b"".join(self._checksums)
        self._write("images", images)
        self._write("checksums", checksums)
        self._stream.seek(0)
        self._stream.write(_pack(self._header(_seal(self._header(""), images, checksums))))

    def _write(self, name: str, content: Any) -> None:
        self._stream.seek(self._next[name])
        self._next[name] += self._stream.write(content)

    def _header(self, seal: str) -> dict[str, Any]:
        count = len(self._images)
        kinds = {name: (dtype, [count, *shape]) for name, (dtype, shape) in self._layout.shapes().items()}
        kinds |= {name: ("U8", [count, HASH_BYTES]) for name in TABLES}
        places = _places(self._layout, count)
        about = {"schema": SCHEMA, "key": self._key, "seal": seal}
        return {
            "__metadata__": about,
            **{name: {"dtype": dtype, "shape": shape, "data_offsets": places[name]} for name, (dtype, shape) in kinds.items()},
        }


class Shard:
    """An opened file of rows; nothing of them is read yet.

    Args:
        path: The file; when another process replaces it, this one goes on with what it opened.
        key: Digest of the key that its cache must have.
    Raises:
        CacheDamaged: If it is not what a `ShardWriter` wrote, or belongs to another cache.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
            header, start = _read_header(self._bytes)
            self.layout = _layout_of(header)
            count = header["images"]["shape"][0]
            places = _places(self.layout, count)
            about = header["__metadata__"]
            schema, stored_key, seal = about["schema"], about["key"], about["seal"]
            about["seal"] = ""
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CacheDamaged(f"{path} is no readable file of rows ({type(error).__name__}: {error}); {_REMEDY}") from error
        if (schema, stored_key) != (SCHEMA, key):
            raise CacheDamaged(f"{path} is {schema} of key {stored_key[:12]}, expected {SCHEMA} of {key[:12]}; {_REMEDY}")
        expected = start + max(end for _, end in places.values())
        if len(self._bytes) != expected:
            raise CacheDamaged(f"{path} is truncated or longer: {len(self._bytes)} bytes, expected {expected}; {_REMEDY}")
        self._parts = {name: self._bytes[start + a : start + b].reshape(count, -1) for name, (a, b) in places.items()}
        if _seal(header, self._parts["images"], self._parts["checksums"]) != seal:
            raise CacheDamaged(f"{path}: its header or its list of images has changed since it was written; {_REMEDY}")
        self.images = [row.tobytes().hex() for row in self._parts["images"]]
        self._intact = np.zeros(count, dtype=bool)

    def copy_row(self, index: int, parts: dict[str, NDArray[np.uint8]]) -> None:
        """Copy a row; it is checked when it is read for the first time.

        Args:
            index: Of the row, from 0.
            parts: Name -> where its bytes go, (bytes per image,).
        Raises:
            CacheDamaged: If the row is not the one that was written.
        """
        for name, part in parts.items():
            part[:] = self._parts[name][index]
        if not self._intact[index]:
            image, stored = (self._parts[name][index].tobytes() for name in TABLES)
            if checksum(image, (parts[name] for name in PARTS if name in parts)) != stored:
                raise CacheDamaged(
                    f"{self.path}: row {index} (image of SHA-256 {image.hex()[:12]}...) has other bytes than were written; "
                    f"{_REMEDY}"
                )
            self._intact[index] = True


def _places(layout: RowLayout, count: int) -> dict[str, tuple[int, int]]:
    """Return name -> (first byte, one past the last) of what a file holds, from the end of its header."""
    places, start = {}, 0
    for name, size in {**layout.sizes(), **dict.fromkeys(TABLES, HASH_BYTES)}.items():
        places[name] = start, start + count * size
        start += count * size
    return places


def _read_header(content: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """Return the header and where the first tensor begins."""
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < start <= len(content):
        raise ValueError(f"its header should end at byte {start} of {len(content)}")
    return json.loads(content[8:start].tobytes()), start


def _layout_of(header: dict[str, Any]) -> RowLayout:
    tokens, *others = (header.get(name) for name in PARTS)
    _, n_tokens, width = tokens["shape"]
    features, logits = (None if part is None else part["shape"][1] for part in others)
    return RowLayout(tokens["dtype"], (n_tokens, width), features, logits)


def _pack(header: dict[str, Any]) -> bytes:
    """Return the first bytes of a file."""
    content = json.dumps(header).encode()
    content += b" " * (-(8 + len(content)) % _ALIGNMENT)
    return len(content).to_bytes(8, "little") + content


def _seal(header: dict[str, Any], images: Any, checksums: Any) -> str:
    """Hash everything in a file but the rows, which have their checksums; the header's own seal is left empty."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(images)
    digest.update(checksums)
    return digest.hexdigest()

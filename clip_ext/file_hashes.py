"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field


def hash_file(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class FileHashes:
    """SHA-256 of files, computed once per path and version of the file."""

    known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, path: str | os.PathLike) -> str:
        """Return the hash of the file at `path`."""
        stat = os.stat(path)
        key = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
        if key not in self.known:
            self.known[key] = hash_file(path)
        return self.known[key]

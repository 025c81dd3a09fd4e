"""Files are read once per version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from clip_ext import file_hashes
from clip_ext.file_hashes import FileHashes, hash_file


def test_hash_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_hashes_are_computed_once_per_version_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = tmp_path / "a", []
    file.write_bytes(b"first")
    monkeypatch.setattr(file_hashes, "hash_file", lambda path: calls.append(path) or hash_file(path))
    hashes = FileHashes()
    assert hashes.of(file) == hashes.of(str(file)) == hash_file(file)
    assert len(calls) == 1
    file.write_bytes(b"something longer than before")
    assert hashes.of(file) == hash_file(file)
    assert len(calls) == 2

"""Files of rows: standard safetensors, and every changed byte is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from feature_worlds import assert_equal_rows, rows_for, write_pictures
from safetensors.torch import load_file

from trainers.gated_blip2.cache.rows import RowLayout, Rows, bytes_of
from trainers.gated_blip2.cache.shards import CacheDamaged, Shard, ShardWriter, shard_name
from trainers.gated_blip2.cache.store import hash_images

KEY = "a" * 64


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[str], Rows]:
    """A file of three rows, written two and one."""
    paths = write_pictures(tmp_path / "pictures", 3)
    images, rows = hash_images(paths), rows_for(paths)
    path = tmp_path / shard_name(images)
    with path.open("wb") as stream:
        writer = ShardWriter(stream, RowLayout.of(rows), images, KEY)
        writer.add(rows_for(paths[:2]))
        writer.add(rows_for(paths[2:]))
        writer.close()
    return path, images, rows


def read(shard: Shard, index: int) -> Rows:
    found = shard.layout.empty(1)
    shard.copy_row(index, {name: part[0] for name, part in bytes_of(found).items()})
    return found


def read_all(path: Path, count: int = 3) -> None:
    shard = Shard(path, KEY)
    for index in range(count):
        read(shard, index)


def test_a_file_is_safetensors(written: tuple[Path, list[str], Rows]) -> None:
    path, images, rows = written
    tensors = load_file(path)
    assert_equal_rows(Rows(tensors["tokens"], tensors["features"], tensors["logits"]), rows)
    assert [bytes(row.tolist()).hex() for row in tensors["images"]] == images
    assert tensors["tokens"].dtype == torch.bfloat16


def test_rows_are_read_one_by_one(written: tuple[Path, list[str], Rows]) -> None:
    path, images, rows = written
    shard = Shard(path, KEY)
    assert shard.images == images and shard.layout == RowLayout.of(rows)
    for index in (2, 0, 1, 0):
        assert_equal_rows(read(shard, index), Rows(**{name: part[index : index + 1] for name, part in rows.parts().items()}))


def test_a_flipped_byte_anywhere_is_detected(written: tuple[Path, list[str], Rows]) -> None:
    path, *_ = written
    original = path.read_bytes()
    silent = []
    for place in range(0, len(original), 7):  # header, rows, images and checksums
        content = bytearray(original)
        content[place] ^= 1
        path.write_bytes(content)
        try:
            read_all(path)
        except CacheDamaged as error:
            assert path.name in str(error)
        else:
            silent.append((place, original[place : place + 1]))
    path.write_bytes(original)
    read_all(path)
    assert silent == []


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1, 1])
def test_a_truncated_or_longer_file_is_detected_when_it_is_opened(written: tuple[Path, list[str], Rows], length: int) -> None:
    path, *_ = written
    content = path.read_bytes()
    path.write_bytes(content + b"x" if length == 1 else content[:length])
    with pytest.raises(CacheDamaged, match=path.name):
        Shard(path, KEY)


def test_swapped_rows_are_detected(written: tuple[Path, list[str], Rows]) -> None:
    path, *_ = written
    content = bytearray(path.read_bytes())
    size = Shard(path, KEY).layout.row_bytes - 4 * (6 + 3)
    start = 8 + int.from_bytes(content[:8], "little")
    first, second = content[start : start + size], content[start + size : start + 2 * size]
    content[start : start + 2 * size] = second + first
    path.write_bytes(content)
    shard = Shard(path, KEY)
    read(shard, 2)
    for index in (0, 1):
        with pytest.raises(CacheDamaged, match=f"row {index} "):
            read(shard, index)


def test_a_file_of_another_cache_is_refused(written: tuple[Path, list[str], Rows]) -> None:
    with pytest.raises(CacheDamaged, match="of key aaaaaaaaaaaa, expected"):
        Shard(written[0], "b" * 64)


def test_a_row_is_checked_once(written: tuple[Path, list[str], Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.gated_blip2.cache import shards

    calls = []
    monkeypatch.setattr(shards, "checksum", lambda *a, real=shards.checksum: calls.append(1) or real(*a))
    shard = Shard(written[0], KEY)
    assert not calls
    for _ in range(3):
        read(shard, 1)
    assert len(calls) == 1


def test_too_few_too_many_and_other_rows_are_errors(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "pictures", 3)
    images, rows = hash_images(paths), rows_for(paths)
    with (tmp_path / "file").open("wb") as stream:
        writer = ShardWriter(stream, RowLayout.of(rows), images, KEY)
        writer.add(rows_for(paths[:2]))
        with pytest.raises(ValueError, match="2 rows for 3 images"):
            writer.close()
        with pytest.raises(ValueError, match="4 rows for 3 images"):
            writer.add(rows_for(paths[:2]))
        with pytest.raises(ValueError, match="F32"):
            writer.add(rows_for(paths[2:], torch.float32))


def test_names_depend_on_images_and_their_order() -> None:
    assert shard_name(["a", "b"]) != shard_name(["b", "a"]) != shard_name(["a"])


def test_rows_without_style_are_stored_too(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "pictures", 2)
    images, rows = hash_images(paths), Rows(rows_for(paths).tokens)
    path = tmp_path / "file"
    with path.open("wb") as stream:
        writer = ShardWriter(stream, RowLayout.of(rows), images, KEY)
        writer.add(rows)
        writer.close()
    found = read(Shard(path, KEY), 1)
    assert found.features is None and found.logits is None and torch.equal(found.tokens, rows.tokens[1:])

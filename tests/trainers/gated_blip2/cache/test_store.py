"""Reading the feature cache: rows belong to bytes of images, and a wrong or damaged folder is never used."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from feature_worlds import assert_equal_rows, build, make_key, rows_for, write_pictures

from trainers.gated_blip2.cache import store
from trainers.gated_blip2.cache.key import CacheDiffers
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.cache.shards import CacheDamaged
from trainers.gated_blip2.cache.store import HEADER, hash_images, open_cache, shard_files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A cache of seven pictures, which no test may change."""
    top = tmp_path_factory.mktemp("built")
    paths = write_pictures(top / "pictures", 7)
    build(top / "cache", paths)
    return top / "cache", paths


@pytest.fixture
def copied(built: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    return Path(shutil.copytree(built[0], tmp_path / "cache")), built[1]


def test_rows_come_in_the_order_that_is_asked_for(built: tuple[Path, list[str]]) -> None:
    folder, paths = built
    cache = open_cache(folder, make_key())
    asked = [paths[number] for number in (5, 0, 6, 5, 3)]
    assert_equal_rows(cache.read(cache.rows_of(asked)), rows_for(asked))
    assert_equal_rows(cache.read(torch.tensor(cache.rows_of(asked[:2]))), rows_for(asked[:2]))
    assert len(cache) == 7 and cache.n_read == 7


def test_rows_belong_to_bytes_not_to_names(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, paths = built
    shutil.copy(paths[4], tmp_path / "copy.png")
    shutil.copy(paths[1], tmp_path / "a.png")
    shutil.copy(paths[2], tmp_path / "b.png")
    cache = open_cache(folder, make_key())
    assert cache.rows_of([str(tmp_path / "copy.png")]) == cache.rows_of([paths[4]])
    before = cache.rows_of([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    shutil.copy(paths[2], tmp_path / "a.png")  # now a and b are swapped; sizes are equal
    shutil.copy(paths[1], tmp_path / "b.png")
    swapped = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert cache.rows_of(swapped) == before[::-1]
    assert_equal_rows(cache.read(cache.rows_of(swapped)), rows_for([paths[2], paths[1]]))


def test_images_without_a_row_are_named(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, paths = built
    new = write_pictures(tmp_path / "new", 9)[8:]
    cache = open_cache(folder, make_key())
    assert cache.missing([*paths, *new]) == new
    with pytest.raises(ValueError, match=r"1 images have no row .*8\.png"):
        cache.rows_of([*paths, *new])
    with pytest.raises(FileNotFoundError, match=r"1 images are missing, for example .*gone\.png"):
        cache.rows_of([*paths, str(tmp_path / "gone.png")])
    with pytest.raises(IndexError, match="7 rows.*7"):
        cache.read([0, 7])
    with pytest.raises(IndexError, match="-1"):
        cache.read([-1])


@pytest.mark.parametrize("field", sorted(make_key().fields))
def test_each_field_that_differs_alone_is_refused_by_name(copied: tuple[Path, list[str]], field: str) -> None:
    header = copied[0] / HEADER
    content = json.loads(header.read_text("utf-8"))
    value = content["fields"][field]
    content["fields"][field] = {**value, "new": 1} if isinstance(value, dict) else f"other {value}"
    header.write_text(json.dumps(content), "utf-8")
    with pytest.raises(CacheDiffers, match=field) as caught:
        open_cache(copied[0], make_key())
    assert len(caught.value.differences) == 1 and "CACHE.DIR" in str(caught.value)
    with pytest.raises(CacheDiffers):
        build(copied[0], copied[1])


def test_a_cache_of_tokens_after_the_post_ln_is_refused_where_it_trains(built: tuple[Path, list[str]]) -> None:
    with pytest.raises(CacheDiffers, match="post_ln is true, expected false"):
        open_cache(built[0], make_key(post_ln=False))


def test_another_format_or_an_unreadable_header_is_refused(copied: tuple[Path, list[str]]) -> None:
    header = copied[0] / HEADER
    content = json.loads(header.read_text("utf-8"))
    header.write_text(json.dumps({**content, "format": 99}), "utf-8")
    with pytest.raises(CacheDiffers, match="format is 99"):
        open_cache(copied[0], make_key())
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "fields": 3}'):
        header.write_text(text, "utf-8")
        with pytest.raises(CacheDamaged, match=HEADER):
            open_cache(copied[0], make_key())
    header.unlink()
    with pytest.raises(FileNotFoundError, match="build_feature_cache"):
        open_cache(copied[0], make_key())


def test_a_damaged_row_is_found_on_reading_and_named_with_its_file_and_image(copied: tuple[Path, list[str]]) -> None:
    folder, paths = copied
    path = shard_files(folder)[0]
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 4
    path.write_bytes(content)
    cache = open_cache(folder, make_key())
    rows = cache.rows_of(paths)
    bad = paths[rows.index(0)]
    with pytest.raises(CacheDamaged) as caught:
        cache.read(rows)
    assert path.name in str(caught.value) and bad in str(caught.value) and "delete this file" in str(caught.value)
    good = [number for number, row in enumerate(rows) if row]
    assert_equal_rows(cache.read([rows[number] for number in good]), rows_for([paths[number] for number in good]))


def test_a_truncated_file_is_named_when_the_cache_is_opened(copied: tuple[Path, list[str]]) -> None:
    folder, paths = copied
    path = shard_files(folder)[1]
    path.write_bytes(path.read_bytes()[:-1])
    for use in (lambda: open_cache(folder, make_key()), lambda: build(folder, paths)):
        with pytest.raises(CacheDamaged, match=rf"{path.name}.*truncated.*delete this file"):
            use()
    path.unlink()
    assert_equal_rows(build(folder, paths).read([0, 1]), open_cache(folder, make_key()).read([0, 1]))


def test_files_of_several_layouts_are_refused(copied: tuple[Path, list[str]], tmp_path: Path) -> None:
    more = write_pictures(tmp_path / "more", 8)[7:]
    other = build(tmp_path / "other", more, lambda paths: Rows(rows_for(paths).tokens))
    shutil.copy(shard_files(other.folder)[0], copied[0])
    with pytest.raises(CacheDamaged, match="several kinds"):
        open_cache(copied[0], make_key())


def test_reading_copies_rows_not_files(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "pictures", 32)
    cache = build(
        tmp_path / "cache", paths, lambda batch: Rows(torch.randn(len(batch), 64, 256)), shard_images=32, batch_size=8
    )
    rows, size = cache.rows_of(paths[:2]), cache.layout.row_bytes
    cache = open_cache(tmp_path / "cache", make_key())
    tracemalloc.start()
    found = cache.read(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * size
    found.tokens.fill_(0)  # a copy: what is on disk stays
    assert cache.read(rows).tokens.abs().sum() > 0


def test_a_file_is_hashed_once_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_pictures(tmp_path, 70)
    calls = []
    monkeypatch.setattr("clip_ext.file_hashes.hash_file", lambda path: calls.append(path) or f"{len(calls):064x}")
    monkeypatch.setattr(store, "_hashes", type(store._hashes)())
    first = hash_images([*paths, *paths[:5]])
    assert len(calls) == 70 and first[70:] == first[:5]
    assert hash_images(paths) == first[:70] and len(calls) == 70
    Path(paths[3]).write_bytes(b"another version")
    hash_images(paths)
    assert len(calls) == 71

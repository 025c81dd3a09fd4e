"""Building the feature cache: every image once, nothing half, the same files whatever happened meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from feature_worlds import (
    BATCH,
    CountingEncoder,
    assert_equal_rows,
    build,
    contents,
    make_key,
    rows_for,
    write_pictures,
)

from trainers.gated_blip2.cache import build as build_module
from trainers.gated_blip2.cache.key import CacheDiffers
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.cache.store import HEADER, open_cache, shard_files

KILLED = """
import os, sys
sys.path[:0] = sys.argv[3].split(os.pathsep)
import signal
from pathlib import Path
from feature_worlds import build, rows_for
paths = sorted(map(str, Path(sys.argv[1]).iterdir()))

def encode(batch):
    if paths[6] in batch:  # in the middle of the second file
        os.kill(os.getpid(), signal.SIGKILL)
    return rows_for(batch)

build(Path(sys.argv[2]), paths, encode)
"""


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return write_pictures(tmp_path / "pictures", 9)


def test_each_image_is_encoded_once_in_full_batches(tmp_path: Path, pictures: list[str]) -> None:
    twin = tmp_path / "twin.png"
    shutil.copy(pictures[3], twin)
    encode = CountingEncoder()
    paths = [*pictures[:5], str(twin), *pictures[3:]]
    cache = build(tmp_path / "cache", paths, encode)
    assert encode.names == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"], ["8"]]
    assert len(cache) == 9
    assert_equal_rows(cache.read(cache.rows_of(paths)), rows_for(paths))
    assert build(tmp_path / "cache", paths, encode).rows_of(paths) == cache.rows_of(paths)
    assert len(encode.batches) == 5


def test_batches_begin_anew_with_each_file(tmp_path: Path, pictures: list[str]) -> None:
    encode = CountingEncoder()
    build(tmp_path / "cache", pictures, encode, shard_images=5, batch_size=3)
    assert encode.names == [["0", "1", "2"], ["3", "4"], ["5", "6", "7"], ["8"]]
    assert [len(open_cache(tmp_path / "cache", make_key())), len(shard_files(tmp_path / "cache"))] == [9, 2]


def test_only_what_is_missing_is_added(tmp_path: Path, pictures: list[str]) -> None:
    encode = CountingEncoder()
    build(tmp_path / "cache", pictures[:3], encode)
    before = contents(tmp_path / "cache")
    cache = build(tmp_path / "cache", pictures, encode)
    assert encode.names == [["0", "1"], ["2"], ["3", "4"], ["5", "6"], ["7", "8"]]
    assert before.items() <= contents(tmp_path / "cache").items()
    assert_equal_rows(cache.read(cache.rows_of(pictures)), rows_for(pictures))


def test_an_interrupted_build_resumes_to_identical_files(tmp_path: Path, pictures: list[str]) -> None:
    def stop(batch: list[str]) -> Rows:
        if pictures[6] in batch:
            raise KeyboardInterrupt
        return rows_for(batch)

    build(tmp_path / "whole", pictures)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "resumed", pictures, stop)
    assert len(shard_files(tmp_path / "resumed")) == 1  # the first is complete, of the second nothing is left
    assert not list((tmp_path / "resumed").glob(".*"))
    encode = CountingEncoder()
    build(tmp_path / "resumed", pictures, encode)
    assert encode.names == [["4", "5"], ["6", "7"], ["8"]]
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_build_resumes_to_identical_files(tmp_path: Path, pictures: list[str]) -> None:
    build(tmp_path / "whole", pictures)
    here = Path(__file__).resolve()
    places = os.pathsep.join(map(str, (here.parents[1], here.parents[4])))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "pictures"), str(tmp_path / "resumed"), places]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    left = list((tmp_path / "resumed").glob(".*.part"))
    assert len(left) == 1 and len(shard_files(tmp_path / "resumed")) == 1
    build(tmp_path / "resumed", pictures)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert left[0].exists()  # it might be another process'
    os.utime(left[0], (0, 0))
    build(tmp_path / "resumed", [*pictures, *write_pictures(tmp_path / "more", 10)])
    assert not left[0].exists()


def test_two_builds_at_once_end_in_the_files_of_one(tmp_path: Path, pictures: list[str]) -> None:
    """The second one begins while the first is in the middle of a file, does all of it, and is not disturbed, nor disturbs."""
    inner = CountingEncoder()

    def encode(batch: list[str]) -> Rows:
        if not inner.batches:
            build(tmp_path / "both", pictures, inner)
        return rows_for(batch)

    outer = CountingEncoder(encode)
    build(tmp_path / "both", pictures, outer)
    build(tmp_path / "one", pictures)
    assert len(inner.batches) == 5 and outer.names == [["0", "1"], ["2", "3"]]  # then its first file is done
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


def test_builds_of_different_images_at_once_keep_each_others_rows(tmp_path: Path, pictures: list[str]) -> None:
    started = []

    def encode(batch: list[str]) -> Rows:
        if not started:
            started.append(1)
            build(tmp_path / "both", pictures[2:])
        return rows_for(batch)

    build(tmp_path / "both", pictures[:6], encode)
    cache = open_cache(tmp_path / "both", make_key())
    assert len(cache) == 9
    assert_equal_rows(cache.read(cache.rows_of(pictures)), rows_for(pictures))


def test_rows_that_are_not_finite_stop_the_build_and_name_the_image(tmp_path: Path, pictures: list[str]) -> None:
    def encode(batch: list[str]) -> Rows:
        rows = rows_for(batch, torch.float16)
        if pictures[5] in batch:
            rows.tokens[batch.index(pictures[5]), 0, 0] = torch.inf
        return rows

    key = make_key(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float16.*5\.png \(ViT tokens\).*PREC bf16") as caught:
        build(tmp_path / "cache", pictures, encode, key=key)
    assert "4.png" not in str(caught.value)
    assert len(open_cache(tmp_path / "cache", key)) == 4  # what was complete stays


def test_space_is_checked_before_anything_is_written(
    tmp_path: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 9 * (rows_for(pictures[:1]).tokens.nbytes + 4 * (6 + 3) + 64)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda folder: usage(10**12, 0, needed - 1))
    with pytest.raises(OSError, match=r"9 images need 0\.00 GB below .*, where 0\.00 GB are free.*CACHE\.DIR"):
        build(tmp_path / "cache", pictures)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [HEADER]
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda folder: usage(10**12, 0, needed))
    assert len(build(tmp_path / "cache", pictures)) == 9


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build_module.ShardWriter, "close", full)
        with pytest.raises(OSError, match="No space left"):
            build(tmp_path / "cache", pictures)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [HEADER]


def test_an_image_that_changes_while_it_is_encoded_is_an_error(tmp_path: Path, pictures: list[str]) -> None:
    def encode(batch: list[str]) -> Rows:
        rows = rows_for(batch)
        if pictures[2] in batch:
            Path(pictures[2]).write_bytes(b"something else")
        return rows

    with pytest.raises(ValueError, match=r"changed while they were encoded: .*2\.png"):
        build(tmp_path / "cache", pictures, encode)


def test_unreadable_images_are_named(tmp_path: Path, pictures: list[str]) -> None:
    def fail(path: str) -> str:
        if path == pictures[4]:
            raise OSError("cannot identify image file")
        return path

    with pytest.raises(ValueError, match=r"4\.png cannot be read: cannot identify"):
        build(tmp_path / "cache", pictures, load=fail)
    with pytest.raises(ValueError, match=r"4\.png.* cannot be encoded: cannot identify"):
        build(tmp_path / "cache", pictures, lambda batch: rows_for([fail(path) for path in batch]))


def test_images_are_loaded_in_threads_in_order(tmp_path: Path, pictures: list[str]) -> None:
    threads, seen = set(), []

    def load(path: str) -> tuple[str, str]:
        threads.add(threading.get_ident())
        return "loaded", path

    def encode(batch: list[tuple[str, str]]) -> Rows:
        assert all(mark == "loaded" for mark, _ in batch) and not torch.is_grad_enabled()
        seen.append(len(batch))
        return rows_for([path for _, path in batch])

    cache = build(tmp_path / "threaded", pictures, encode, load=load)
    assert threading.get_ident() not in threads and seen == [2, 2, 2, 2, 1]
    build(tmp_path / "plain", pictures)
    assert contents(cache.folder) == contents(tmp_path / "plain")


def test_a_build_draws_nothing(tmp_path: Path, pictures: list[str]) -> None:
    before = torch.get_rng_state()
    build(tmp_path / "cache", pictures, load=lambda path: path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_wrong_number_or_kind_of_rows_is_an_error(tmp_path: Path, pictures: list[str]) -> None:
    with pytest.raises(ValueError, match=f"1 rows for {BATCH} images"):
        build(tmp_path / "cache", pictures, lambda batch: rows_for(batch[:1]))
    build(tmp_path / "cache", pictures[:3])
    with pytest.raises(ValueError, match="F32"):
        build(tmp_path / "cache", pictures, lambda batch: rows_for(batch, torch.float32))
    with pytest.raises(CacheDiffers, match="dtype"):
        build(tmp_path / "cache", pictures, key=make_key(dtype=torch.float32))


def test_a_new_cache_says_what_keeps_the_nearest_from_being_used(
    tmp_path: Path, pictures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "near", pictures[:1])
    build(tmp_path / "far", pictures[:1], key=make_key(n_styles=0))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / HEADER).write_text("{", "utf-8")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        build(tmp_path / "new", pictures[:1], key=make_key(post_ln=False))
    (line,) = [record.message for record in caplog.records if "a new one" in record.message]
    assert f"{tmp_path / 'near'} " in line and line.endswith(": post_ln is true, expected false")

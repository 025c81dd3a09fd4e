"""Entries survive on disk bit by bit, or not at all: what is damaged, foreign or another model's is never used."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_worlds import CONTEXT, OTHER, ask, background, open_cache, payload, request, store
from safetensors.torch import save_file

from trainers.bgobj_llava.cache import disk as cache_disk
from trainers.bgobj_llava.cache.disk import DamagedEntry, ForeignFile, read_entry, read_facts, remove_stale_parts
from trainers.bgobj_llava.cache.match import DAMAGED, FINGERPRINT, NO_CANDIDATE, OBJECT_INSIDE
from trainers.bgobj_llava.cache.options import Hit
from trainers.bgobj_llava.cache.scene import Scene

SCENE = background(1)
GIB = 2**30
ENTRY_BYTES = 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4


def disk_only(folder: Path, **options: object):
    return open_cache(device_gib=0.0, disk_gib=1.0, folder=str(folder), **options)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """File of an entry of `SCENE`."""
    key = store(disk_only(tmp_path), request(SCENE), seed=3)
    return tmp_path / f"{key}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_process_reads_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    tokens, pairs = payload(35, seed=3)
    tokens = tokens.to(dtype)
    keys, values = pairs["llm"][0]
    pairs["fusion"] = [(keys.to(dtype), values.transpose(1, 2).contiguous().transpose(1, 2))]
    disk_only(tmp_path).store(request(SCENE), CONTEXT, tokens, pairs)
    hit = disk_only(tmp_path).look_up(request(SCENE), CONTEXT)
    assert isinstance(hit, Hit) and (hit.tier, hit.level, hit.exact) == ("disk", "kv", True)
    assert torch.equal(hit.payload.tokens, tokens) and hit.payload.tokens.dtype == dtype
    for name in ("llm", "fusion"):
        assert len(hit.payload.pairs[name]) == len(pairs[name])
        for read, given in zip(hit.payload.pairs[name], pairs[name], strict=True):
            assert torch.equal(read[0], given[0]) and torch.equal(read[1], given[1])


def test_verification_reads_the_pixels_of_the_file(stored: Path) -> None:
    cache = disk_only(stored.parent)
    changed = SCENE.copy()
    changed[-1, -1, -1] ^= 1
    assert ask(cache, request(changed)) != stored.stem
    assert ask(cache, request(SCENE)) == stored.stem


def test_what_was_read_from_disk_comes_from_memory_the_next_time(stored: Path) -> None:
    cache = open_cache(disk_gib=1.0, folder=str(stored.parent))
    tiers = []
    for _ in range(2):
        with cache.look_up(request(SCENE), CONTEXT) as hit:
            tiers.append(hit.tier)
    assert tiers == ["disk", "device"]
    assert cache.counters.as_dict()["hits"] == {"kv/disk": 1, "kv/device": 1}


def test_every_flipped_byte_is_found(stored: Path) -> None:
    content = stored.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, length, 60), *rng.integers(length, len(content), 60), length, len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        stored.write_bytes(bytes(damaged))
        with pytest.raises((DamagedEntry, ForeignFile)):
            read_entry(stored)


def test_a_truncated_file_is_skipped_and_counted(stored: Path) -> None:
    content = stored.read_bytes()
    for size in (0, 5, 200, len(content) - 1):
        stored.write_bytes(content[:size])
        cache = disk_only(stored.parent)
        assert cache.counters.damaged == 1 and ask(cache, request(SCENE)) == NO_CANDIDATE


@pytest.mark.parametrize("tensor", ["pixels", "tokens", "llm.1.values"])
def test_damage_after_opening_is_a_miss_and_the_entry_is_stored_again(
    stored: Path, tensor: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = disk_only(stored.parent)
    content = bytearray(stored.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    content[length + json.loads(content[8:length])[tensor]["data_offsets"][0]] ^= 1
    stored.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        assert ask(cache, request(SCENE)) == DAMAGED
    assert cache.counters.damaged == 1 and stored.name in caplog.text and cache.n_pinned == 0
    assert store(cache, request(SCENE), seed=3) == stored.stem
    assert ask(disk_only(stored.parent), request(SCENE)) == stored.stem


def test_a_file_that_is_gone_is_a_miss(stored: Path) -> None:
    cache = disk_only(stored.parent)
    stored.unlink()
    assert ask(cache, request(SCENE)) == DAMAGED
    assert ask(cache, request(SCENE)) == NO_CANDIDATE


def test_an_entry_under_another_name_is_refused(stored: Path) -> None:
    stored.rename(stored.with_name("0" * 64 + ".safetensors"))
    cache = disk_only(stored.parent)
    assert cache.counters.damaged == 1 and len(cache) == 0


def test_an_entry_whose_pixels_were_exchanged_is_refused(stored: Path) -> None:
    """Even with a checksum made anew: the key is computed from the pixels."""
    entry = read_entry(stored)
    other = type(entry)(entry.facts, entry.rows[::-1].copy(), entry.payload)
    cache_disk.write_entry(stored, other)
    with pytest.raises(DamagedEntry, match="do not belong to its key"):
        read_entry(stored)
    assert ask(disk_only(stored.parent), request(SCENE)) != stored.stem


def test_foreign_files_are_counted_and_stay(stored: Path) -> None:
    folder = stored.parent
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / ".hidden").write_text("mine", encoding="utf-8")
    save_file({"weight": torch.ones(2)}, folder / "adapter.safetensors")
    cache = disk_only(folder)
    assert cache.counters.foreign == 2 and len(cache) == 1
    assert {path.name for path in folder.iterdir()} >= {"notes.txt", ".hidden", "adapter.safetensors"}


def test_another_models_folder_hits_nothing_and_keeps_its_files(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = disk_only(stored.parent)
    with caplog.at_level(logging.WARNING):
        cache.new_context(OTHER)
    assert "none of the 1 entries" in caplog.text
    assert ask(cache, request(SCENE), OTHER) == FINGERPRINT
    assert ask(cache, request(background(5)), OTHER) == NO_CANDIDATE
    assert stored.is_file()


def test_a_new_context_deletes_what_this_cache_wrote(stored: Path) -> None:
    cache = disk_only(stored.parent)
    own = store(cache, request(background(2)))
    cache.new_context(OTHER)
    assert stored.is_file() and not stored.with_name(f"{own}.safetensors").exists()
    cache.new_context(CONTEXT)
    assert ask(cache, request(SCENE)) == stored.stem


def test_without_keys_and_values_on_disk_hits_are_tokens_and_grow_in_memory(tmp_path: Path) -> None:
    key = store(disk_only(tmp_path, disk_kv="never"), request(SCENE), seed=3)
    assert read_facts(tmp_path / f"{key}.safetensors")[1] == "tokens"
    cache = open_cache(disk_gib=1.0, folder=str(tmp_path), disk_kv="never")
    levels = []
    for _ in range(2):
        with cache.look_up(request(SCENE), CONTEXT) as hit:
            levels.append((hit.level, hit.tier))
        store(cache, request(SCENE), seed=3)
    assert levels == [("tokens", "disk"), ("kv", "device")]


def test_what_is_stored_already_needs_no_second_sighting_to_grow(tmp_path: Path) -> None:
    key = store(disk_only(tmp_path, disk_kv="never"), request(SCENE), seed=3)
    cache = open_cache(disk_gib=1.0, folder=str(tmp_path), disk_kv="never", admit_after=2)
    assert store(cache, request(SCENE), seed=3) == key and store(cache, request(background(2))) is None
    with cache.look_up(request(SCENE), CONTEXT) as hit:
        assert (hit.level, hit.tier) == ("kv", "device")


def test_memory_is_demoted_to_disk_before_anything_is_lost(tmp_path: Path) -> None:
    cache = open_cache(device_gib=2.5 * ENTRY_BYTES / GIB, disk_gib=1.0, folder=str(tmp_path))
    keys = [store(cache, request(background(seed)), seed) for seed in range(5)]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 and len(cache) == 5
    assert cache.counters.demoted["device"] == 3 and not cache.counters.evicted
    for seed in range(5):
        with cache.look_up(request(background(seed)), CONTEXT) as hit:
            assert hit.entry.key == keys[seed] and torch.equal(hit.payload.tokens, payload(35, seed)[0])
            assert cache.counters.nbytes["device"] <= 2.5 * ENTRY_BYTES


def test_the_disk_keeps_its_budget_and_what_was_used_last(tmp_path: Path) -> None:
    folder, size = tmp_path, None
    cache = disk_only(folder)
    store(cache, request(background(0)))
    size = sum(path.stat().st_size for path in folder.iterdir())
    cache = open_cache(device_gib=0.0, disk_gib=3.5 * size / GIB, folder=str(folder))
    for seed in range(1, 8):
        store(cache, request(background(seed)), seed)
        ask(cache, request(background(0)))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 3.5 * size
    assert ask(cache, request(background(0))) != NO_CANDIDATE
    assert ask(cache, request(background(7))) != NO_CANDIDATE
    assert ask(cache, request(background(3))) == NO_CANDIDATE
    assert len(cache) == 3 and cache.counters.evicted["disk"] == 5


def test_closing_writes_what_is_in_memory(tmp_path: Path) -> None:
    cache = open_cache(disk_gib=1.0, folder=str(tmp_path))
    key = store(cache, request(SCENE))
    assert list(tmp_path.iterdir()) == []
    cache.close()
    assert ask(disk_only(tmp_path), request(SCENE)) == key


def test_a_full_disk_costs_a_notice_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = disk_only(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(cache_disk, "save_file", fail)
    assert store(cache, request(SCENE)) is None
    assert "No space left" in caplog.text and list(tmp_path.iterdir()) == []
    assert ask(cache, request(SCENE)) == NO_CANDIDATE


def test_equal_bytes_of_other_tensors_are_found(stored: Path) -> None:
    """Type, shape and name of a tensor stand in the file's own header, which no metadata repeat."""
    content = stored.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    columns = {"dtype": "I32", "shape": [40, 7]}
    for change in ({"dtype": "I32"}, {"shape": [8, 35]}, {"shape": [40, 7]}, columns):
        text = json.dumps(header | {"tokens": header["tokens"] | change}).encode()
        stored.write_bytes(len(text).to_bytes(8, "little") + text + content[length:])
        with pytest.raises(DamagedEntry, match="differ from their checksum"):
            read_entry(stored)
    swapped = header | {"llm.0.keys": header["llm.0.values"], "llm.0.values": header["llm.0.keys"]}
    text = json.dumps(swapped).encode()
    stored.write_bytes(len(text).to_bytes(8, "little") + text + content[length:])
    with pytest.raises(DamagedEntry, match="differ from their checksum"):
        read_entry(stored)


def test_another_schema_is_foreign(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_disk, "SCHEMA", "bgobj-cache-2")
    with pytest.raises(ForeignFile, match="has schema 'bgobj-cache-1'; expected 'bgobj-cache-2'"):
        read_entry(stored)
    cache = disk_only(stored.parent)
    assert (cache.counters.foreign, cache.counters.damaged, len(cache)) == (1, 0, 0) and stored.is_file()


def test_the_next_run_knows_what_was_used_last(tmp_path: Path) -> None:
    keys = [store(disk_only(tmp_path), request(background(seed)), seed) for seed in range(3)]
    for age, key in enumerate(keys):
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    assert ask(disk_only(tmp_path), request(background(0))) == keys[0]
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / 3
    cache = open_cache(device_gib=0.0, disk_gib=3.9 * size / GIB, folder=str(tmp_path))
    store(cache, request(background(3)), 3)
    assert [(tmp_path / f"{key}.safetensors").exists() for key in keys] == [True, False, True]


def test_of_keys_and_values_on_disk_a_cache_of_tokens_gives_tokens(stored: Path) -> None:
    with disk_only(stored.parent, mode="tokens").look_up(request(SCENE), CONTEXT) as hit:
        assert (hit.level, hit.payload.pairs) == ("tokens", {})


def test_entries_of_another_model_that_gave_way_are_no_reason_of_a_miss(stored: Path) -> None:
    size = stored.stat().st_size
    cache = open_cache(device_gib=0.0, disk_gib=1.9 * size / GIB, folder=str(stored.parent))
    cache.new_context(OTHER)
    assert ask(cache, request(SCENE), OTHER) == FINGERPRINT
    store(cache, request(background(2)), context=OTHER)
    assert not stored.exists() and ask(cache, request(SCENE), OTHER) == NO_CANDIDATE


def test_what_this_models_entries_say_comes_before_the_fingerprint(stored: Path) -> None:
    cache = disk_only(stored.parent)
    cache.new_context(OTHER)
    store(cache, request(SCENE, (35,)), context=OTHER)
    assert ask(cache, request(SCENE, (0,)), OTHER) == OBJECT_INSIDE
    assert ask(cache, request(SCENE, (0, 35)), OTHER) == OBJECT_INSIDE


def test_what_a_file_holds_is_not_taken_in_again(stored: Path) -> None:
    cache = open_cache(disk_gib=1.0, folder=str(stored.parent))
    assert store(cache, request(SCENE), seed=3) == stored.stem
    assert cache.counters.stored == 0 and cache.counters.nbytes["device"] == 0


def test_an_entry_written_anew_with_more_is_the_last_to_go(tmp_path: Path) -> None:
    for seed in (0, 1):
        store(disk_only(tmp_path, mode="tokens"), request(background(seed)), seed)
    cache = disk_only(tmp_path)
    first, second = (Scene(request(background(seed))).key(CONTEXT) for seed in (0, 1))
    os.utime(tmp_path / f"{first}.safetensors", (1000, 1000))
    cache = disk_only(tmp_path)
    assert cache._tiers.disk.oldest(()) == first and store(cache, request(background(0)), 0) == first
    assert read_facts(tmp_path / f"{first}.safetensors")[1] == "kv"
    tier = cache._tiers.disk
    assert tier.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert [tier.oldest(()), tier.oldest({second})] == [second, first]


def test_the_budget_counts_whole_files(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        cache = open_cache(device_gib=0.0, disk_gib=(count + 0.6) * ENTRY_BYTES / GIB, folder=str(folder))
        for seed in range(5):
            store(cache, request(background(seed)), seed)
            assert cache.counters.nbytes["disk"] == sum(path.stat().st_size for path in folder.iterdir())
            assert cache.counters.nbytes["disk"] <= (count + 0.6) * ENTRY_BYTES



@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked writer")
def test_a_kill_while_writing_leaves_nothing_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = cache_disk.save_file

    def killed(tensors: dict, path: Path, **options: object) -> None:
        save(tensors, path, **options)
        path.write_bytes(path.read_bytes()[:-100])
        os._exit(9)

    writer = os.fork()
    if writer == 0:
        monkeypatch.setattr(cache_disk, "save_file", killed)
        store(disk_only(tmp_path), request(SCENE))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == 9
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    cache = disk_only(tmp_path)
    assert len(cache) == 0 and cache.counters.damaged == 0 and left.exists()
    assert ask(cache, request(SCENE)) == NO_CANDIDATE
    os.utime(left, (0, 0))
    assert remove_stale_parts(tmp_path) == 1 and not left.exists()

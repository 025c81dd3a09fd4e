"""Entries move down before they are dropped, up when they are used, and stay while they are in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from answer_worlds import generator, new_cache, normalised, picture, small_model, split_at, split_of
from cache_worlds import CONTEXT, background, payload, request

from trainers.bgobj_llava.cache.counters import CacheCounters
from trainers.bgobj_llava.cache.disk import DiskTier
from trainers.bgobj_llava.cache.entry import Entry, Payload, own_memory
from trainers.bgobj_llava.cache.scene import Scene
from trainers.bgobj_llava.cache.tiers import MemoryTier, TierStack

CPU, NAMES = torch.device("cpu"), ("device", "host")


def entry(seed: int) -> Entry:
    return Scene(request(background(seed))).entry(CONTEXT, Payload(*payload(35, seed)))


ENTRIES = [entry(seed) for seed in range(6)]
SIZE = ENTRIES[0].nbytes


class World:
    """Tiers that hold two, one and (on disk) two entries."""

    def __init__(self, folder: Path | None = None, room: tuple[float, float] = (2.5, 1.5)) -> None:
        self.counters, self.gone = CacheCounters(), []
        device, host = (MemoryTier(name, int(each * SIZE), device=CPU) for name, each in zip(NAMES, room, strict=True))
        self.disk = None if folder is None else DiskTier(folder, 3 * SIZE)
        self.stack = TierStack([device, host], self.disk, self.counters, self.gone.append)

    def places(self) -> dict[str, list[int]]:
        numbers = {each.key: number for number, each in enumerate(ENTRIES)}
        return {
            tier.name: [number for key, number in numbers.items() if key in tier] for tier in self.stack.tiers
        }


def test_entries_move_down_tier_by_tier_and_then_are_gone() -> None:
    world = World()
    for each in ENTRIES[:5]:
        assert world.stack.insert(each)
    assert world.places() == {"device": [3, 4], "host": [2]}
    assert world.gone == [ENTRIES[0].key, ENTRIES[1].key]
    assert world.counters.demoted == {"device": 3} and world.counters.evicted == {"host": 2}


def test_the_disk_comes_last_and_frees_its_oldest(tmp_path: Path) -> None:
    world = World(tmp_path)
    for each in ENTRIES:
        world.stack.insert(each)
    assert world.places() == {"device": [4, 5], "host": [3], "disk": [1, 2]}
    assert world.gone == [ENTRIES[0].key]
    assert {path.stem for path in tmp_path.iterdir()} == {ENTRIES[1].key, ENTRIES[2].key}


def test_use_brings_an_entry_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    for each in ENTRIES[:5]:
        world.stack.insert(each)
    for number, tier in ((2, "host"), (0, "disk"), (0, "device")):
        found, name = world.stack.fetch(ENTRIES[number].key)
        assert name == tier and torch.equal(found.payload.tokens, ENTRIES[number].payload.tokens)
    assert 0 in world.places()["device"] and world.places()["disk"].count(0) == 1  # the file stays for the next run
    assert 2 in world.places()["device"] and 2 not in world.places()["host"]
    assert world.gone == [ENTRIES[1].key]  # the oldest, where the disk had room for two


def test_an_entry_that_is_used_last_stays_longest() -> None:
    world = World(room=(2.5, 0))
    world.stack.insert(ENTRIES[0])
    world.stack.insert(ENTRIES[1])
    world.stack.fetch(ENTRIES[0].key)
    world.stack.insert(ENTRIES[2])
    assert world.places() == {"device": [0, 2]}


def test_entries_in_use_stay_where_they_are() -> None:
    world = World(room=(2.5, 0))
    world.stack.insert(ENTRIES[0])
    world.stack.insert(ENTRIES[1])
    for _ in range(2):
        world.stack.pin(ENTRIES[0].key)
    world.stack.pin(ENTRIES[1].key)
    assert not world.stack.insert(ENTRIES[2])
    world.stack.unpin(ENTRIES[1].key)
    assert world.stack.insert(ENTRIES[2]) and world.places() == {"device": [0, 2]}
    world.stack.unpin(ENTRIES[0].key)
    world.stack.insert(ENTRIES[3])
    assert 0 in world.places()["device"]  # still used once
    world.stack.unpin(ENTRIES[0].key)
    world.stack.insert(ENTRIES[4])
    assert 0 not in world.places()["device"] and world.stack.n_pinned == 0


def test_what_does_not_fit_above_goes_below(tmp_path: Path) -> None:
    world = World(tmp_path, room=(0.5, 0))
    assert world.stack.insert(ENTRIES[0]) and world.places() == {"device": [], "disk": [0]}
    found, name = world.stack.fetch(ENTRIES[0].key)
    assert name == "disk" and torch.equal(found.payload.tokens, ENTRIES[0].payload.tokens)
    assert world.places() == {"device": [], "disk": [0]} and not world.gone


def test_an_entry_that_gets_more_takes_its_own_place() -> None:
    world = World(room=(1.2, 0))
    world.stack.insert(ENTRIES[0].with_payload(ENTRIES[0].payload.without_pairs()))
    assert world.stack.insert(ENTRIES[0]) and world.stack.level(ENTRIES[0].key) == "kv"
    assert world.places() == {"device": [0]} and world.stack.memory[0].nbytes == SIZE
    assert world.gone == [] and not world.counters.evicted and not world.counters.demoted
    assert world.stack.insert(ENTRIES[1]) and world.places() == {"device": [1]} and world.gone == [ENTRIES[0].key]
    world = World(room=(1.9, 0))
    world.stack.insert(ENTRIES[0].with_payload(ENTRIES[0].payload.without_pairs()))
    world.stack.insert(ENTRIES[1])
    assert world.stack.insert(ENTRIES[0]) and world.places() == {"device": [0]}
    assert world.gone == [ENTRIES[1].key]  # the other, though it was used later


def test_inserting_an_entry_again_is_a_use_of_it() -> None:
    world = World(room=(2.5, 0))
    for number in (0, 1, 0, 2):
        world.stack.insert(ENTRIES[number])
    assert world.places() == {"device": [0, 2]} and world.stack.memory[0].nbytes == 2 * SIZE


def test_what_is_used_while_others_leave_no_room_stays_below() -> None:
    world = World(room=(1.5, 1.5))
    world.stack.insert(ENTRIES[0])
    world.stack.insert(ENTRIES[1])
    world.stack.pin(ENTRIES[1].key)
    _, name = world.stack.fetch(ENTRIES[0].key)
    assert name == "host" and world.places() == {"device": [1], "host": [0]}
    assert world.stack.memory[0].nbytes == SIZE and world.gone == []


def test_levels_of_all_tiers_count(tmp_path: Path) -> None:
    world = World(tmp_path, room=(0, 0))
    world.stack.insert(ENTRIES[0])
    assert world.stack.level(ENTRIES[0].key) == "kv"
    only_tokens = World(tmp_path / "tokens", room=(0, 0))
    only_tokens.stack.insert(ENTRIES[0].with_payload(ENTRIES[0].payload.without_pairs()))
    assert only_tokens.stack.level(ENTRIES[0].key) == "tokens"


@pytest.mark.parametrize("used_last", [0, 1, 2])
def test_closing_keeps_what_was_used_last(tmp_path: Path, used_last: int) -> None:
    world = World(tmp_path, room=(2.5, 1.5))
    world.disk.budget = 2 * SIZE  # one file
    for each in ENTRIES[:3]:
        world.stack.insert(each)
    world.stack.fetch(ENTRIES[used_last].key)
    world.stack.flush()
    assert world.places()["disk"] == [used_last]
    assert len(list(tmp_path.iterdir())) == 1


def test_views_are_copied_so_that_budgets_count_what_is_held() -> None:
    large = torch.zeros(100, 8, requires_grad=True)
    part = own_memory(large[:10])
    assert part.untyped_storage().nbytes() == part.nbytes == 320 and not part.requires_grad
    whole = torch.zeros(10)
    assert own_memory(whole).data_ptr() == whole.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_warm_equals_cold_from_every_tier(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model(dtype).cuda()
    size = 20_000 if dtype == torch.bfloat16 else 40_000
    gib = {"device_gib": size / 2**30, "host_gib": size / 2**30, "disk_gib": 1.0, "folder": str(tmp_path)}
    cache = new_cache(device="cuda", **gib)
    warm, cold, seen = generator(model, cache), generator(model), set()
    for _ in range(2):
        for seed in range(5):
            pixels = picture(seed)
            found = warm.answer(normalised(pixels).cuda(), pixels, split_of(5), "where is it?")
            seen.add(found.trace["tier"])
            if found.cached is not None:
                again = cold.answer(normalised(pixels).cuda(), pixels, split_at(found.cached), "where is it?")
                assert again.ids == found.ids and torch.equal(again.logits_first, found.logits_first)
    for seed in (4, 3, 4):
        pixels = picture(seed)
        seen.add(warm.answer(normalised(pixels).cuda(), pixels, split_of(5), "where is it?").trace["tier"])
    assert {"", "device", "host", "disk"} >= seen and len(seen) >= 3

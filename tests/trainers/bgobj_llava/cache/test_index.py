"""The index follows entries that come and go between look-ups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cache_worlds import CONTEXT, ask, background, open_cache, paint, payload, request, store

from trainers.bgobj_llava.cache.entry import Facts, Payload
from trainers.bgobj_llava.cache.index import CacheIndex
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene

SCENE = background(1)
SCENE[12:16, 12:16] = 255 * (np.indices((4, 4)).sum(axis=0)[..., None] % 2)  # the most varied patch: each entry's first anchor


def facts_of(asked: CacheRequest) -> Facts:
    return Scene(asked).entry(CONTEXT, Payload(*payload(int((~asked.objects).sum())))).facts


def one_anchor(asked: CacheRequest) -> Facts:
    """Facts of an entry that can stand in one place only, together with all others of this anchor."""
    facts = facts_of(asked)
    return replace(facts, anchors=facts.anchors[:1])


def found(index: CacheIndex, asked: CacheRequest) -> list[Facts]:
    return index.find(Scene(asked)).facts


def test_other_sets_of_patches_join_and_leave_an_anchors_entries_between_look_ups() -> None:
    index = CacheIndex()
    large, small, other = (one_anchor(request(SCENE, raw)) for raw in ((0,), (0, 1), (0, 1, 2)))
    assert large.anchors == small.anchors == other.anchors
    index.add(large)
    assert found(index, request(SCENE, (0,))) == [large]
    index.add(small)
    index.add(other)
    assert found(index, request(SCENE, (0,))) == [large, small, other]
    assert found(index, request(SCENE, (1,))) == [small, other]
    index.remove(large.key)
    assert found(index, request(SCENE, (0,))) == [small, other]
    index.remove(other.key)
    index.remove(small.key)
    assert found(index, request(SCENE, (0,))) == [] and len(index) == 0
    index.add(large)
    assert found(index, request(SCENE, (0,))) == [large]


def test_an_entry_leaves_alone_though_another_has_the_same_sum() -> None:
    """Two contexts' entries of one background differ in nothing but their keys."""
    index, first = CacheIndex(), one_anchor(request(SCENE))
    second = replace(first, key="b" * 64)
    index.add(first)
    index.add(second)
    index.remove(first.key)
    assert found(index, request(SCENE)) == [second] and first.key not in index
    index.remove(first.key)
    assert len(index) == 1 and [each.key for each in index] == [second.key]


def test_colours_of_entries_that_left_are_forgotten() -> None:
    index, scene = CacheIndex(), Scene(request(SCENE))
    kept, gone = facts_of(request(background(2))), facts_of(request(SCENE))
    index.add(gone)
    index.add(kept)
    assert index.find_alike(scene, 1) == [gone]
    index.remove(gone.key)
    assert index.find_alike(scene, 2) == [kept]
    index.add(gone)
    assert index.find_alike(scene, 2) == [gone, kept] and index.find_alike(scene, 0) == []


def test_an_entry_stands_where_fewest_others_do() -> None:
    """A logo on many backgrounds makes no candidates of them, nor anything to be compared."""
    index = CacheIndex()
    logo = np.zeros((4, 4, 3), dtype=np.uint8)
    logo[::2] = 255  # more varied than any texture
    screens = [background(seed) for seed in range(12)]
    for screen in screens:
        screen[8:12, 8:12] = logo
        index.add(facts_of(request(screen)))
    code = int(Scene(request(screens[0])).codes[14])
    assert code in Scene(request(screens[0])).anchors()
    key = Scene(request(screens[5])).key(CONTEXT)
    assert [facts.key for facts in found(index, request(screens[5]))] == [key]
    stranger = background(99)
    stranger[8:12, 8:12] = logo
    assert len(index.find(Scene(request(stranger))).reasons) == 1  # the first screen had nowhere else to stand
    index.remove(Scene(request(screens[0])).key(CONTEXT))
    assert index.find(Scene(request(stranger))).reasons == set()


def test_evicted_backgrounds_are_found_again_when_they_come_back() -> None:
    entry_bytes = 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4
    cache = open_cache(device_gib=1.5 * entry_bytes / 2**30)
    screens = [paint(SCENE, 35, seed) for seed in range(3)]
    for _ in range(2):
        for number, screen in enumerate(screens):
            asked = request(screen, (number,))
            assert ask(cache, asked) != store(cache, asked) == ask(cache, asked)

"""Whether one stored background may stand for a request's, in each way of matching."""

from __future__ import annotations

import numpy as np
import pytest
from cache_worlds import CONTEXT, ask, background, open_cache, paint, payload, request, store

from trainers.bgobj_llava.cache.entry import Entry, Payload
from trainers.bgobj_llava.cache.match import OBJECT_INSIDE, PIXELS_DIFFER, compare_approximately, rule_out
from trainers.bgobj_llava.cache.options import Hit
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene

SCENE = (background(1) // 2 + 40).astype(np.uint8)


def entry_of(asked: CacheRequest) -> Entry:
    return Scene(asked).entry(CONTEXT, Payload(*payload(int((~asked.objects).sum()))))


def drift_of(now: np.ndarray, tau: float) -> float | str:
    """Drift of pixels to those stored, or the reason of the miss."""
    entry = entry_of(request(SCENE))
    verdict = compare_approximately(entry.facts, entry.rows, Scene(request(now)), tau=tau)
    return verdict.reason or verdict.drift


@pytest.mark.parametrize("match", ["contained", "approx"])
def test_an_object_on_a_streams_last_background_is_a_miss_though_no_pixel_changed(match: str) -> None:
    cache = open_cache(match=match)
    key = store(cache, request(SCENE, (0,), stream_id="door"))
    assert ask(cache, request(SCENE, (0, 7), (0, 1, 6, 7), stream_id="door")) == OBJECT_INSIDE
    assert ask(cache, request(SCENE, (0,), stream_id="door")) == key


def test_objects_rule_an_entry_out_whatever_its_pixels() -> None:
    facts = entry_of(request(SCENE)).facts
    assert rule_out(facts, Scene(request(SCENE, (0, 35))), match="contained") == OBJECT_INSIDE
    assert rule_out(facts, Scene(request(SCENE, (0,), (0, 35))), match="contained") == ""  # dilation may reach into it


@pytest.mark.parametrize("step", [2, -2])
def test_drift_counts_lighter_and_darker_alike(step: int) -> None:
    assert drift_of((SCENE.astype(int) + step).astype(np.uint8), tau=2.0) == 2.0
    assert drift_of((SCENE.astype(int) + 2 * step).astype(np.uint8), tau=0.0) == 4.0  # each patch's cosine is near 1


def test_drift_is_that_of_the_worst_patch() -> None:
    noisy = SCENE.copy()
    noisy[0:4, 4:8] += 1
    noisy[8:12, 8:12] += 5
    assert drift_of(noisy, tau=6.0) == 5.0


def test_one_patch_of_another_texture_is_a_miss_though_all_others_are_alike() -> None:
    for patch in (1, 16, 17, 20, 35):  # among the first that are looked at, and not
        assert drift_of(paint(SCENE, patch, 7), tau=2.0) == PIXELS_DIFFER


def test_a_brighter_patch_does_not_excuse_another_texture() -> None:
    dim = SCENE // 2
    entry = entry_of(request(dim))
    now = paint(dim, 16, 7) // 4 + dim // 2  # not among the patches that are looked at first
    now[:8], now[12:], now[8:12, :16], now[8:12, 20:] = dim[:8], dim[12:], dim[8:12, :16], dim[8:12, 20:]
    now[8:12, 8:12] = 2 * dim[8:12, 8:12]
    drift = np.abs(now.astype(int) - dim).reshape(6, 4, 6, 4, 3).mean(axis=(1, 3, 4)).reshape(-1)
    assert drift.argmax() == 14 and drift[16] > 1
    verdict = compare_approximately(entry.facts, entry.rows, Scene(request(now)), tau=1.0)
    assert verdict.reason == PIXELS_DIFFER
    now[8:12, 16:20] = dim[8:12, 16:20]  # brightness alone is forgiven
    assert compare_approximately(entry.facts, entry.rows, Scene(request(now)), tau=1.0).accepted


def test_the_largest_of_similar_backgrounds_wins_though_another_is_nearer() -> None:
    cache = open_cache(match="approx", tau=6.0)
    near, far = SCENE + np.uint8(1), SCENE + np.uint8(4)
    store(cache, request(near, (0, 1, 2)))
    large = store(cache, request(far, (0,)))
    result = cache.look_up(request(SCENE, (0,)), CONTEXT)
    assert isinstance(result, Hit) and (result.entry.key, result.drift, result.exact) == (large, 4.0, False)


def test_an_equal_background_comes_before_a_larger_similar_one() -> None:
    cache = open_cache(match="approx", tau=6.0)
    store(cache, request(SCENE + np.uint8(1), (0,)))
    equal = store(cache, request(SCENE, (0, 1, 2)))
    result = cache.look_up(request(SCENE, (0,)), CONTEXT)
    assert isinstance(result, Hit) and (result.entry.key, result.exact) == (equal, True)

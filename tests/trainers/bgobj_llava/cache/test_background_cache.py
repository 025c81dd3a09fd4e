"""The cache answers from a background only if its stored pixels are those of the request, and says why if not."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch
from cache_worlds import CONTEXT, KIB, OTHER, ask, background, mask, open_cache, paint, payload, request, store

from trainers.bgobj_llava.cache import background_cache
from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.match import (
    BG_EMPTY,
    FINGERPRINT,
    NO_CANDIDATE,
    OBJECT_INSIDE,
    PIXELS_DIFFER,
)
from trainers.bgobj_llava.cache.options import CacheOptions, Hit, Miss
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene

SCENE = background(1)


def hit_of(cache: BackgroundCache, asked: CacheRequest) -> Hit:
    result = cache.look_up(asked, CONTEXT)
    assert isinstance(result, Hit), result
    return result


def low_variance_patch(pixels: np.ndarray, free: np.ndarray) -> int:
    """Background patch that is no anchor."""
    scene = Scene(CacheRequest(pixels, ~free, ~free))
    return next(int(patch) for patch in np.flatnonzero(free) if int(scene.codes[patch]) not in scene.anchors())


def test_a_stored_background_is_found_again_with_its_tensors() -> None:
    cache = open_cache()
    tokens, pairs = payload(35, seed=7)
    entry = cache.store(request(SCENE, (0,)), CONTEXT, tokens, pairs)
    with hit_of(cache, request(paint(SCENE, 0, 9), (0,))) as hit:
        assert (hit.entry.key, hit.exact, hit.drift, hit.tier, hit.level) == (entry.key, True, 0.0, "device", "kv")
        assert torch.equal(hit.payload.tokens, tokens)
        for stored, given in zip(hit.payload.pairs["llm"], pairs["llm"], strict=True):
            assert torch.equal(stored[0], given[0]) and torch.equal(stored[1], given[1])
        assert np.array_equal(hit.entry.facts.patches, ~mask(0))
        assert cache.n_pinned == 1
        hit.release()
    assert cache.n_pinned == 0


def test_each_hit_is_given_back_once() -> None:
    cache = open_cache()
    store(cache, request(SCENE))
    first, second = hit_of(cache, request(SCENE)), hit_of(cache, request(SCENE))
    first.release()
    first.release()
    assert cache.n_pinned == 1  # the other is still in use
    second.release()
    assert cache.n_pinned == 0


def test_without_keys_and_values_a_hit_is_one_of_tokens() -> None:
    cache = open_cache(mode="tokens")
    store(cache, request(SCENE))
    with hit_of(cache, request(SCENE)) as hit:
        assert hit.level == "tokens" and hit.payload.pairs == {}


def test_one_changed_pixel_of_the_background_is_a_miss() -> None:
    cache = open_cache()
    store(cache, request(SCENE, (0,)))
    free = ~mask(0)
    for patch in (low_variance_patch(SCENE, free), 35):
        row, column = divmod(patch, 6)
        changed = SCENE.copy()
        changed[row * 4 + 3, column * 4 + 2, 1] ^= 1
        assert ask(cache, request(changed, (0,))) in (PIXELS_DIFFER, NO_CANDIDATE)
    assert cache.counters.n_hits == 0


def test_anchors_agree_but_pixels_do_not() -> None:
    cache = open_cache()
    store(cache, request(SCENE, (0,)))
    changed = paint(SCENE, low_variance_patch(SCENE, ~mask(0)), 5)
    assert ask(cache, request(changed, (0,))) == PIXELS_DIFFER


def test_bytes_decide_where_checksums_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every checksum equal, everything is a candidate and nothing but equal pixels is a hit."""
    monkeypatch.setattr(Scene, "codes", property(lambda self: np.zeros(len(self.raw), dtype=np.uint64)))
    monkeypatch.setattr(Scene, "anchor_codes", property(lambda self: [0] * len(self.raw)))
    cache = open_cache()
    keys = [store(cache, request(background(seed), (0,))) for seed in range(5)]
    assert [ask(cache, request(background(seed), (0,))) for seed in range(5)] == keys
    assert ask(cache, request(background(9), (0,))) == PIXELS_DIFFER
    changed = background(3)
    changed[-1, -1, -1] ^= 1
    assert ask(cache, request(changed, (0,))) == PIXELS_DIFFER


def test_an_object_inside_the_stored_background_is_a_miss() -> None:
    cache = open_cache()
    store(cache, request(SCENE, (0,)))
    assert ask(cache, request(SCENE, (low_variance_patch(SCENE, ~mask(0)),))) == OBJECT_INSIDE


def test_a_dilated_object_may_reach_into_the_stored_background() -> None:
    cache = open_cache()
    key = store(cache, request(SCENE, (7,), (0, 1, 2, 6, 7, 8, 12, 13, 14)))
    jittered = request(paint(SCENE, 8, 3), (7, 8), (0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15))
    assert ask(cache, jittered) == key
    with hit_of(cache, jittered) as hit:
        assert set(np.flatnonzero(~hit.entry.facts.patches)) == {0, 1, 2, 6, 7, 8, 12, 13, 14}


def test_identical_asks_for_the_same_patches() -> None:
    cache = open_cache(match="identical")
    key = store(cache, request(SCENE, (7,), (6, 7, 8)))
    assert ask(cache, request(SCENE, (7,), (6, 7))) == NO_CANDIDATE
    assert ask(cache, request(paint(SCENE, 6, 2), (7,), (6, 7, 8))) == key


def test_the_largest_matching_background_wins() -> None:
    cache = open_cache()
    small = store(cache, request(SCENE, (0, 1, 2, 3)))
    large = store(cache, request(SCENE, (0,)))
    assert ask(cache, request(SCENE, (0,))) == large
    assert ask(cache, request(SCENE, (1,))) == small


def test_the_streams_previous_entry_is_tried_first() -> None:
    cache = open_cache()
    small = store(cache, request(SCENE, (0, 1, 2, 3), stream_id="door"))
    large = store(cache, request(SCENE, (0,)))
    before = cache.counters.verified
    assert ask(cache, request(SCENE, (0,), stream_id="door")) == small
    assert ask(cache, request(SCENE, (0,), stream_id="yard")) == large
    assert ask(cache, request(SCENE, (0,), stream_id="yard")) == large
    assert cache.counters.verified - before == 3
    assert ask(cache, request(background(2), (0,), stream_id="door")) in (PIXELS_DIFFER, NO_CANDIDATE)


def test_no_background_no_look_up() -> None:
    cache = open_cache()
    store(cache, request(SCENE))
    assert ask(cache, request(SCENE, (), tuple(range(36)))) == BG_EMPTY
    everything = request(SCENE, tuple(range(36)))
    assert cache.store(everything, CONTEXT, *payload(0)) is None


def test_wrong_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="34 tokens for a background of 35 patches"):
        open_cache().store(request(SCENE), CONTEXT, *payload(34))


def test_masks_that_do_not_fit_the_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="36 and 25 patches"):
        CacheRequest(SCENE, mask(0), mask(0, grid=5))
    with pytest.raises(ValueError, match="float32"):
        CacheRequest(SCENE.astype(np.float32), mask(0), mask(0))


def test_another_context_hits_nothing_and_frees_the_old() -> None:
    cache = open_cache()
    key = store(cache, request(SCENE))
    assert ask(cache, request(SCENE), OTHER) == FINGERPRINT
    assert cache.store(request(SCENE), OTHER, *payload(35)) is None
    assert ask(cache, request(SCENE)) == key  # asking with another context changes nothing
    cache.new_context(OTHER)
    assert len(cache) == 0 and cache.counters.nbytes["device"] == 0
    assert ask(cache, request(SCENE), OTHER) == NO_CANDIDATE
    cache.new_context(CONTEXT)
    assert ask(cache, request(SCENE)) == NO_CANDIDATE


def test_admission_counts_sightings() -> None:
    cache = open_cache(admit_after=3)
    assert [store(cache, request(SCENE)) is not None for _ in range(4)] == [False, False, True, True]
    assert store(cache, request(background(2))) is None
    assert cache.counters.rejected["not seen often enough"] == 3
    cache.new_context(OTHER)
    cache.new_context(CONTEXT)
    assert store(cache, request(background(2))) is None and store(cache, request(background(2))) is None


def test_the_oldest_sightings_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_cache, "MAX_REMEMBERED", 2)
    cache = open_cache(admit_after=2)
    stored = [store(cache, request(background(seed))) is not None for seed in (0, 1, 2, 0, 2)]
    assert stored == [False, False, False, False, True]


def test_every_nth_exact_hit_is_to_be_audited() -> None:
    cache = open_cache(audit_every=3)
    store(cache, request(SCENE))
    asked = []
    for _ in range(7):
        with hit_of(cache, request(SCENE)) as hit:
            asked.append(hit.audit)
    assert asked == [False, False, True, False, False, True, False]
    assert cache.counters.audits == 2


def test_counters_add_up() -> None:
    cache = BackgroundCache(saved_flops=lambda n_bg, level: n_bg * (10.0 if level == "kv" else 1.0))
    cache.new_context(CONTEXT)
    for _ in range(2):  # the second time there is nothing new
        store(cache, request(SCENE))
    ask(cache, request(SCENE))
    ask(cache, request(background(2)))
    ask(cache, request(SCENE, tuple(range(36))))
    counts = cache.counters.as_dict()
    assert counts["requests"] == 3 and counts["hits"] == {"kv/device": 1} and counts["hit_rate"] == pytest.approx(1 / 3)
    assert counts["misses"][NO_CANDIDATE] == 1 and counts["misses"][BG_EMPTY] == 1
    assert counts["saved_flops"] == 350.0 and counts["stored"] == 1
    assert counts["bytes"]["device"] == 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4


def test_approximate_hits_say_so_and_how_far_off_they_are() -> None:
    cache = open_cache(match="approx", tau=2.0, audit_every=2)
    dim = (SCENE // 2 + 40).astype(np.uint8)
    key = store(cache, request(dim, (0,)))
    noisy = dim.copy()
    noisy[8:12, 8:12] += 2
    with hit_of(cache, request(noisy, (0,))) as hit:
        assert hit.entry.key == key and not hit.exact and hit.drift == pytest.approx(2.0)
        assert not hit.audit
    assert cache.counters.inexact == 1
    with hit_of(cache, request(dim, (0,))) as hit:
        assert hit.exact and hit.drift == 0 and not hit.audit  # only exact ones count
    assert ask(cache, request(paint(dim, 20, 4), (0,))) == PIXELS_DIFFER
    assert ask(cache, request(noisy, (20,))) == OBJECT_INSIDE


def test_approximate_matching_looks_at_the_most_alike_only() -> None:
    cache = open_cache(match="approx", topk=2)
    for seed in range(20):
        store(cache, request(background(seed), (0,)))
    before = cache.counters.verified
    noisy = background(7)
    noisy[-1, -1, 0] ^= 1
    assert ask(cache, request(noisy, (0,))) == store(cache, request(background(7), (0,)))
    assert cache.counters.verified - before == 2


def test_few_pixels_are_compared_among_many_entries() -> None:
    cache = open_cache()
    shared = background(0)
    for seed in range(300):  # all show the same striking patch
        store(cache, request(paint(background(seed), 14, 1), (0,)), seed)
    del shared
    before = cache.counters.verified
    assert ask(cache, request(paint(background(123), 14, 1), (0,))) is not None
    ask(cache, request(paint(background(999), 14, 1), (0,)))
    assert cache.counters.verified - before == 1


def test_budgets_hold_over_random_operations_and_pinned_entries_stay() -> None:
    entry_bytes = 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4
    cache = open_cache(device_gib=4.5 * entry_bytes / 2**30)
    rng, held, scenes = np.random.default_rng(0), [], [background(seed) for seed in range(12)]
    for step in range(5000):
        number = int(rng.integers(12))
        action = rng.random()
        if action < 0.5:
            result = cache.look_up(request(scenes[number]), CONTEXT)
            if isinstance(result, Hit):
                assert result.payload.tokens[0, 0] == payload(35, number)[0][0, 0] if step % 50 == 0 else True
                if len(held) < 3 and action < 0.1:
                    held.append(result)
                else:
                    result.release()
        elif action < 0.9:
            store(cache, request(scenes[number]), number)
        elif held:
            held.pop(int(rng.integers(len(held)))).release()
        assert cache.counters.nbytes["device"] <= 4.5 * entry_bytes
        assert len(cache) <= 4
        assert all(cache.holds(hit.entry.key) for hit in held)
    assert cache.counters.evicted["device"] > 100


def test_an_entry_above_the_budget_is_not_stored() -> None:
    cache = open_cache(device_gib=1 * KIB)
    assert store(cache, request(SCENE)) is None
    assert cache.counters.rejected["no room"] == 1 and len(cache) == 0


def test_all_entries_in_use_leave_no_room() -> None:
    entry_bytes = 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4
    cache = open_cache(device_gib=1.5 * entry_bytes / 2**30)
    store(cache, request(SCENE))
    hit = hit_of(cache, request(SCENE))
    assert store(cache, request(background(2))) is None
    hit.release()
    assert store(cache, request(background(2))) is not None
    assert ask(cache, request(SCENE)) == NO_CANDIDATE


def test_readers_during_evictions_see_no_error_and_no_wrong_entry() -> None:
    entry_bytes = 35 * 48 + 35 * 8 * 4 + 2 * 2 * 2 * 38 * 4 * 4
    cache = open_cache(device_gib=3.5 * entry_bytes / 2**30)
    scenes, problems, hits = [background(seed) for seed in range(8)], [], []
    tokens = [payload(35, number)[0] for number in range(8)]

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                number = int(rng.integers(8))
                result = cache.look_up(request(scenes[number]), CONTEXT)
                if isinstance(result, Miss):
                    store(cache, request(scenes[number]), number)
                    continue
                with result as hit:
                    hits.append(number)
                    if not torch.equal(hit.payload.tokens, tokens[number]):
                        problems.append(number)
        except Exception as error:  # noqa: BLE001 - whatever happens in a thread has to reach the test
            problems.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and len(hits) > 50 and cache.n_pinned == 0
    assert cache.counters.evicted["device"] > 10


def test_unknown_options_are_reported_together() -> None:
    with pytest.raises(ValueError) as caught:
        CacheOptions(mode="image", match="similar", topk=0, disk_gib=1.0)
    assert [word in str(caught.value) for word in ("CACHE.MODE", "CACHE.MATCH", "CACHE.TOPK", "CACHE.DIR")] == [True] * 4


def test_a_context_given_first_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    cache = BackgroundCache()
    with caplog.at_level(logging.WARNING):
        assert ask(cache, request(SCENE)) == NO_CANDIDATE
    assert store(cache, request(SCENE)) is not None and caplog.records == []


def test_a_thousand_entries_that_differ_in_one_corner_cost_one_comparison() -> None:
    cache = open_cache()
    screens = [paint(SCENE, 35, seed) for seed in range(1000)]
    keys = [store(cache, request(screen, (0, number % 30))) for number, screen in enumerate(screens)]
    before = cache.counters.verified
    assert ask(cache, request(screens[700], (0, 700 % 30))) == keys[700]
    assert cache.counters.verified - before == 1
    assert ask(cache, request(paint(SCENE, 35, 5000), (0,))) in (PIXELS_DIFFER, NO_CANDIDATE)
    assert cache.counters.verified - before == 1


def test_images_of_other_sizes_are_no_candidates() -> None:
    cache = open_cache()
    store(cache, request(SCENE, (0,)))
    larger = background(2, grid=8)
    larger[:24, :24] = SCENE
    assert ask(cache, request(larger, (0,))) == NO_CANDIDATE
    key = store(cache, request(larger, (0,)))
    assert ask(cache, request(larger, (0,))) == key


def test_black_and_bright_patches_are_not_alike() -> None:
    cache = open_cache(match="approx", tau=1.0)
    black = np.zeros((24, 24, 3), dtype=np.uint8)
    store(cache, request(black, (0,)))
    assert ask(cache, request(black + np.uint8(200), (0,))) == PIXELS_DIFFER
    grey = np.full((24, 24, 3), 100, dtype=np.uint8)
    key = store(cache, request(grey, (0,)))
    with hit_of(cache, request(grey + np.uint8(50), (0,))) as hit:  # brightness alone is forgiven, and reported
        assert (hit.entry.key, hit.exact, hit.drift) == (key, False, 50.0)

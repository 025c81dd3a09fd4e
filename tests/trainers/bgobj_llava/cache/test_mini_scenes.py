"""The cache on MiniScenes' groups at 336 px with a detector's boxes: exchanged objects hit, false friends never do."""

from __future__ import annotations

import numpy as np
import pytest
from cache_worlds import CONTEXT, open_cache, payload

from datasets.mini_scenes_generator.groups import scene_group
from datasets.mini_scenes_generator.scenes import Scene
from trainers.bgobj_llava.cache.match import PIXELS_DIFFER
from trainers.bgobj_llava.cache.options import Hit, Miss
from trainers.bgobj_llava.cache.scene import CacheRequest
from trainers.bgobj_llava.geometry import MaskPolicy, fill_boxes, split_raw

SIDE, PATCH, GRID = 336, 14, 24
N_GROUPS, SIGMA_PX = 40, 4.0


@pytest.fixture(scope="module")
def groups() -> list[dict[str, Scene]]:
    return [scene_group(np.random.default_rng(seed), size_px=SIDE) for seed in range(N_GROUPS)]


def request(scene: Scene, rng: np.random.Generator) -> CacheRequest:
    """Request with jittered boxes, d = 1."""
    boxes = np.array([thing.box for thing in scene.objects], dtype=np.float64)
    boxes += rng.normal(0, SIGMA_PX, boxes.shape)
    covered = fill_boxes(boxes, SIDE).reshape(GRID, PATCH, GRID, PATCH).any(axis=(1, 3)).reshape(-1)
    split = split_raw(covered, MaskPolicy(dilate=1), GRID)
    return CacheRequest(np.ascontiguousarray(scene.image), split.raw, split.objects)


def is_right(hit: Hit, asked: CacheRequest, stored: dict[str, np.ndarray]) -> bool:
    patches = hit.entry.facts.patches
    inside = np.kron(patches.reshape(GRID, GRID), np.ones((PATCH, PATCH), dtype=bool))
    return not (patches & asked.raw).any() and np.array_equal(asked.pixels[inside], stored[hit.entry.key][inside])


def test_exchanged_objects_hit_and_false_friends_do_not(groups: list[dict[str, Scene]]) -> None:
    cache, rng, stored = open_cache(), np.random.default_rng(0), {}
    for group in groups:
        asked = request(group["base"], rng)
        if not asked.objects.all():
            entry = cache.store(asked, CONTEXT, *payload(int((~asked.objects).sum()), layers=1))
            stored[entry.key] = asked.pixels
    hits, requests, wrong = {role: 0 for role in group}, {role: 0 for role in group}, 0
    reasons = set()
    for group in groups:
        for role, scene in group.items():
            for _ in range(3):
                asked = request(scene, rng)
                result = cache.look_up(asked, CONTEXT)
                requests[role] += 1
                if isinstance(result, Miss):
                    reasons |= {result.reason} if role == "false_friend" else set()
                    continue
                with result as hit:
                    hits[role] += 1
                    wrong += not is_right(hit, asked, stored)
    assert wrong == 0 and hits["false_friend"] == 0 and PIXELS_DIFFER in reasons
    assert hits["exchanged"] / requests["exchanged"] >= 0.98 and hits["base"] / requests["base"] >= 0.98
    assert hits["moved"] < requests["moved"] / 2  # it covers what was background

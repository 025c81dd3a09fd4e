"""Backgrounds that look alike never share an answer: whatever the cache returns is held against the stored pixels here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cache_worlds import CONTEXT, GRID, PATCH, background, mask, open_cache, paint, payload, request, store

from trainers.bgobj_llava.cache.options import Hit
from trainers.bgobj_llava.cache.scene import CacheRequest

SIDE = GRID * PATCH
N_SCENES = 40


def flat(seed: int) -> np.ndarray:
    """One colour with one striking patch, the same in many scenes: anchors agree often."""
    rng = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3, dtype=np.uint8))
    return paint(pixels, 21, seed % 3)


def one_pixel(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    copy = pixels.copy()
    row, column, channel = rng.integers(SIDE), rng.integers(SIDE), rng.integers(3)
    copy[row, column, channel] ^= 1
    return copy


def few_patches(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for patch in rng.choice(GRID * GRID, int(rng.integers(1, 4)), replace=False):
        pixels = paint(pixels, int(patch), int(rng.integers(2**31)))
    return pixels


def swapped_patches(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    copy = pixels.copy()
    (a, b), (c, d) = rng.integers(0, GRID, (2, 2)) * PATCH
    copy[a : a + PATCH, b : b + PATCH] = pixels[c : c + PATCH, d : d + PATCH]
    copy[c : c + PATCH, d : d + PATCH] = pixels[a : a + PATCH, b : b + PATCH]
    return copy


def shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(pixels, int(rng.choice([1, PATCH])), axis=int(rng.integers(2)))


def brighter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels + np.uint8(1)


def unchanged(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels


CHANGES = (one_pixel, few_patches, swapped_patches, shifted, brighter, unchanged)


def agrees(pixels: np.ndarray, raw: np.ndarray, stored: np.ndarray, patches: np.ndarray) -> bool:
    """The rule of validity, straight from its definition."""
    inside = np.kron(patches.reshape(GRID, GRID), np.ones((PATCH, PATCH), dtype=bool))
    return not (raw & patches).any() and np.array_equal(pixels[inside], stored[inside])


@pytest.mark.parametrize("make", [background, flat])
def test_ten_thousand_look_ups_accept_no_wrong_background(make: Callable[[int], np.ndarray]) -> None:
    cache, rng = open_cache(), np.random.default_rng(0)
    scenes = [make(seed) for seed in range(N_SCENES)]
    stored: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, scene in enumerate(scenes):
        for raw in ((int(rng.integers(36)),), tuple(range(6))):
            asked = request(scene, raw)
            stored[store(cache, asked, number)] = scene, ~asked.objects
    hits = wrong = missed = 0
    for step in range(5000):
        pixels = CHANGES[step % len(CHANGES)](scenes[int(rng.integers(N_SCENES))], rng)
        raw = mask(*rng.choice((36, 6)[step % 2], int(rng.integers(1, 4)), replace=False))
        result = cache.look_up(CacheRequest(pixels, raw, raw), CONTEXT)
        if isinstance(result, Hit):
            hits += 1
            wrong += not agrees(pixels, raw, *stored[result.entry.key])
            wrong += not result.exact
            result.release()
        elif step % 25 < 2:
            missed += any(agrees(pixels, raw, *each) for each in stored.values())
    assert (wrong, missed) == (0, 0)
    assert hits > 300  # the test would not notice a cache that never hits


def test_a_thousand_pairs_of_images_with_equal_shape_and_prompt_never_share() -> None:
    rng = np.random.default_rng(1)
    for number in range(1000):
        first = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        second = one_pixel(first, rng) if number % 2 else rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        cache = open_cache()
        cache.store(request(first, ()), CONTEXT, *payload(36, layers=1))  # all of the picture is background
        assert not isinstance(cache.look_up(request(second, ()), CONTEXT), Hit)

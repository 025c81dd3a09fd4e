"""Any change of what a background's tokens depend on makes another context."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from cache_worlds import CONTEXT, background, mask, paint, request

from trainers.bgobj_llava.cache import key as cache_key
from trainers.bgobj_llava.cache.key import (
    ContextFields,
    cache_context,
    code_version,
    entry_key,
    hash_fields,
    weights_fingerprint,
)
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene

FIELDS = ContextFields(
    weights="a",
    options={"split": "bgobj"},
    preprocessing={"mean": [0.5]},
    prefix_ids=(1, 2),
    separator_ids={"bg_start": 7},
    visible=("bg", "obj"),
    dtype="float32",
    attention="sdpa",
    device="cpu",
)
OTHERS = {
    "weights": "b",
    "options": {"split": "isolate_only"},
    "preprocessing": {"mean": [0.4]},
    "prefix_ids": (12,),
    "separator_ids": {"bg_start": 8},
    "visible": ("bg",),
    "dtype": "bfloat16",
    "attention": "eager",
    "device": "cuda",
}


def test_fields_cannot_run_into_one_another() -> None:
    assert len({hash_fields(each) for each in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], [b"ab", "c", ""])}) == 5


@pytest.mark.parametrize("name", [field.name for field in fields(ContextFields)])
def test_every_field_counts(name: str) -> None:
    assert cache_context(replace(FIELDS, **{name: OTHERS[name]})) != cache_context(FIELDS)
    assert cache_context(replace(FIELDS)) == cache_context(FIELDS)


def test_versions_and_code_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {cache_context(FIELDS)}
    for target, name, value in ((torch, "__version__", "0"), (transformers, "__version__", "0"), (cache_key, "SCHEMA", "0")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            seen.add(cache_context(FIELDS))
    monkeypatch.setattr(cache_key, "code_version", lambda: "other")
    seen.add(cache_context(FIELDS))
    assert len(seen) == 5


@pytest.mark.parametrize(
    "changed", ["trainers/bgobj_llava/geometry.py", "trainers/bgobj_llava/model/encode.py", "clip_ext/vision.py"]
)
def test_the_code_version_is_that_of_the_sources(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("trainers/bgobj_llava/cache/key.py", "trainers/bgobj_llava/geometry.py", "trainers/bgobj_llava/model/encode.py")
    for file in (*files, "clip_ext/vision.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a = 1\n", "utf-8")
    monkeypatch.setattr(cache_key, "__file__", str(tmp_path / files[0]))
    before = code_version.__wrapped__()
    (tmp_path / changed).write_text("a = 2\n", "utf-8")
    assert code_version.__wrapped__() != before and len(before) == 64


def test_patches_pixels_and_context_make_the_key() -> None:
    scene = Scene(request(background(0)))
    patches = ~mask(0)
    rows = scene.rows[patches]
    changed = rows.copy()
    changed[3, 3] ^= 1
    moved = ~mask(1)
    keys = {
        entry_key(CONTEXT, patches, rows),
        entry_key("d" * 64, patches, rows),
        entry_key(CONTEXT, moved, rows),
        entry_key(CONTEXT, patches, changed),
        entry_key(CONTEXT, patches[:-1], rows),
    }
    assert len(keys) == 5


def test_weights_are_hashed_with_name_type_and_value() -> None:
    weights = {"a": torch.zeros(4), "b": torch.ones(2, dtype=torch.bfloat16)}
    seen = {weights_fingerprint("", weights), weights_fingerprint("base", weights)}
    seen.add(weights_fingerprint("", {"a": torch.zeros(4), "c": weights["b"]}))
    seen.add(weights_fingerprint("", weights | {"a": torch.zeros(2, 2)}))
    seen.add(weights_fingerprint("", weights | {"a": torch.zeros(4, dtype=torch.int32)}))
    weights["b"][1] += 2**-7
    seen.add(weights_fingerprint("", weights))
    assert len(seen) == 6


@pytest.mark.parametrize(("grid", "patch"), [(6, 4), (5, 3), (24, 14)])
def test_patches_are_cut_in_raster_order(grid: int, patch: int) -> None:
    pixels = background(0, grid=grid, patch=patch)
    empty = np.zeros(grid * grid, dtype=bool)
    rows = Scene(CacheRequest(pixels, empty, empty)).rows
    for number in (0, 1, grid, grid * grid - 1):
        row, column = divmod(number, grid)
        square = pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert np.array_equal(rows[number], square.reshape(-1))


@pytest.mark.parametrize(("grid", "patch"), [(6, 4), (5, 3)])
def test_any_changed_byte_changes_the_code_of_its_patch_only(grid: int, patch: int) -> None:
    pixels, empty = background(0, grid=grid, patch=patch), np.zeros(grid * grid, dtype=bool)
    codes = Scene(CacheRequest(pixels, empty, empty)).codes
    assert len(set(codes.tolist())) == grid * grid
    rng = np.random.default_rng(0)
    for _ in range(200):
        row, column, channel = rng.integers(grid * patch), rng.integers(grid * patch), rng.integers(3)
        changed = pixels.copy()
        changed[row, column, channel] ^= 1 << int(rng.integers(8))
        differs = Scene(CacheRequest(changed, empty, empty)).codes != codes
        assert np.flatnonzero(differs).tolist() == [row // patch * grid + column // patch]


def test_equal_patches_at_other_places_have_other_codes() -> None:
    grey = np.full((24, 24, 3), 128, dtype=np.uint8)
    assert len(set(Scene(request(grey)).codes.tolist())) == 36


def test_anchors_are_the_background_patches_of_highest_variance() -> None:
    pixels = np.full((24, 24, 3), 128, dtype=np.uint8)
    for number, strength in ((0, 100), (7, 80), (14, 60), (21, 40), (28, 20), (35, 10)):
        row, column = divmod(number, 6)
        pixels[row * 4, column * 4] += np.uint8(strength)
    scene = Scene(request(pixels, (0,)))
    assert scene.anchors() == tuple(int(scene.codes[number]) for number in (7, 14, 21, 28))
    few = Scene(request(pixels, tuple(range(34))))
    assert set(few.anchors()) == {int(few.codes[34]), int(few.codes[35])}


def test_colours_do_not_see_the_objects() -> None:
    first = Scene(request(background(0), (7, 8)))
    second = Scene(request(paint(paint(background(0), 7, 1), 8, 2), (7, 8)))
    assert np.array_equal(first.colours, second.colours)
    assert first.colours.shape == (192,) and np.linalg.norm(first.colours) == pytest.approx(1)
    assert not np.array_equal(first.colours, Scene(request(background(1), (7, 8))).colours)

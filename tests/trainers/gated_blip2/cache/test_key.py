"""A cache belongs to exactly one model, one pair of views, one dtype and one set of libraries."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from feature_worlds import VIEW, make_key

from trainers.adapters import BaseModel
from trainers.gated_blip2.cache import key as key_module
from trainers.gated_blip2.cache.key import CacheKey, cache_folder, problems_with_augmentation
from trainers.gated_blip2.image_view import ImageViewFacts
from trainers.gated_blip2.style.view import StyleView

CHANGES = {
    "model": {"base": BaseModel("other", "b" * 64)},
    "weights": {"base": BaseModel("tiny", "d" * 64)},
    "image_view.side_px": {"image_view": {**VIEW, "side_px": 32}},
    "image_view.mean": {"image_view": {**VIEW, "mean": (0.4, 0.5, 0.5)}},
    "dtype": {"dtype": torch.float16},
    "post_ln": {"post_ln": False},
    "style_arch": {"style_arch": "efficientnet_b3"},
    "style_sha256": {"style_sha256": "e" * 64},
    "style_view.resize_px": {"style_view": {"resize_px": 21}},
    "style_classes": {"n_styles": 4},
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_fact_changes_the_folder_and_is_named(field: str) -> None:
    key, other = make_key(), make_key(**CHANGES[field])
    assert key.folder_name != other.folder_name
    lines = key.differences(other.fields)
    assert len(lines) == 1 and lines[0].startswith(f"{field} is ")


@pytest.mark.parametrize("field", ["code", *(f"versions.{name}" for name in key_module.LIBRARIES)])
def test_code_and_library_versions_count(field: str) -> None:
    key = make_key()
    stored = copy.deepcopy(dict(key.fields))
    *parents, last = field.split(".")
    place = stored
    for parent in parents:
        place = place[parent]
    place[last] = "0.0.1"
    assert [line.split(" is ")[0] for line in key.differences(stored)] == [field]
    assert CacheKey(stored).folder_name != key.folder_name


def test_every_field_of_the_header_is_tested_here() -> None:
    named = {field.split(".")[0] for field in CHANGES} | {"code", "versions"}
    assert named == set(make_key().fields)


def test_the_key_of_a_model_says_what_it_was_loaded_with(tmp_path: Path) -> None:
    from trainers.gated_blip2.building import cache_of

    view, style_view = ImageViewFacts(28, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic"), StyleView(40, 32)
    loaded = SimpleNamespace(base=BaseModel("tiny", "a" * 64), view=view, dtype=torch.bfloat16)
    style = SimpleNamespace(arch="efficientnet_tiny", sha256="e" * 64, view=style_view, class_names=("Baroque", "Cubism"))

    def fields_of(preset: str, encoder: object) -> dict[str, object]:
        node = SimpleNamespace(PRESET=preset, CACHE=SimpleNamespace(DIR=str(tmp_path)))
        folder, key = cache_of(SimpleNamespace(loaded=loaded, style_encoder=encoder), node)
        assert folder == tmp_path / key.folder_name
        return {name: value for name, value in key.fields.items() if name not in ("code", "versions")}

    seen = {"side_px": 28, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "resample": "bicubic"}
    own = {"model": "tiny", "weights": "a" * 64, "image_view": seen, "dtype": "bfloat16", "post_ln": True}
    with_style = {
        "style_arch": style.arch, "style_sha256": style.sha256, "style_view": style_view.as_json(), "style_classes": 2
    }  # fmt: skip
    assert fields_of("gates_proj", style) == own | with_style
    assert fields_of("original", style) == own | with_style | {"post_ln": False}
    nothing = {"style_arch": "", "style_sha256": "", "style_view": None, "style_classes": 0}
    assert fields_of("projection", None) == own | nothing
    without_names = SimpleNamespace(**vars(style) | {"class_names": None})
    assert fields_of("gates", without_names)["style_classes"] == 0


def test_a_difference_shows_both_values_and_shortens_hashes() -> None:
    lines = make_key().differences({**make_key().fields, "post_ln": False, "weights": "f" * 64, "extra": 1})
    assert lines == [
        "extra is 1, expected absent",
        "post_ln is false, expected true",
        f"weights is {'f' * 12}..., expected {'b' * 12}...",
    ]


def test_views_may_be_dataclasses_and_tuples_equal_lists() -> None:
    @dataclass(frozen=True)
    class View:
        side_px: int
        mean: tuple[float, ...]

    same = make_key(image_view=View(VIEW["side_px"], VIEW["mean"]))
    assert same.digest == make_key().digest and same.differences(make_key().fields) == []
    assert make_key(style_view=None, style_arch="", style_sha256="", n_styles=0).fields["style_view"] is None


def test_folders_are_below_the_configured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key()
    assert cache_folder("", key) == Path("output/cache") / key.folder_name
    assert cache_folder(tmp_path, key).parent == tmp_path
    monkeypatch.setattr(key_module, "CACHE_DIR", str(tmp_path / "elsewhere"))
    assert cache_folder("", key).parent == tmp_path / "elsewhere"


def test_random_transforms_are_an_error() -> None:
    assert problems_with_augmentation(()) == []
    assert problems_with_augmentation(("normalize", "center_crop")) == []
    (message,) = problems_with_augmentation(("random_flip", "normalize", "colorjitter"))
    assert "random_flip, colorjitter" in message and "expected none" in message
    assert "normalize:" not in message

"""Sizes that pictures can have, and what an image processor says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_blip2s import SIDE_PX, tiny_config
from transformers import BlipImageProcessor

from trainers.gated_blip2.image_view import MEAN, STD, problems_with_size, read_view


def test_384_px_is_refused_naming_its_neighbours() -> None:
    for interpolate in (False, True):
        (problem,) = problems_with_size(384, 14, interpolate, native_px=224)
        assert "INPUT.SIZE is 384 px" in problem and "27.43 patches" in problem and "378 or 392" in problem


def test_364_px_needs_stretched_positions() -> None:
    assert problems_with_size(364, 14, True, native_px=224) == []
    (problem,) = problems_with_size(364, 14, False, native_px=224)
    assert "364" in problem and "TRAINER.GATEDBLIP2.INTERPOLATE_POS True" in problem
    assert problems_with_size(224, 14, False, native_px=224) == problems_with_size(364, 14, False) == []


def test_less_than_a_patch_is_refused() -> None:
    assert "14 for instance" in problems_with_size(10, 14, True)[0]


def test_view_is_the_processors(tmp_path: Path) -> None:
    facts = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 2}
    BlipImageProcessor(**facts).save_pretrained(tmp_path)
    view = read_view(tmp_path, tiny_config(), None)
    assert (view.side_px, view.mean, view.std, view.resample) == (48, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bilinear")
    assert read_view(tmp_path, tiny_config(), 32).side_px == 32


@pytest.mark.parametrize("side_px", [None, 32])
def test_view_without_a_processor_is_blip2s(tmp_path: Path, side_px: int | None) -> None:
    view = read_view(tmp_path / "shapes.json", tiny_config(), side_px)
    assert (view.side_px, view.mean, view.std, view.resample) == (side_px or SIDE_PX, MEAN, STD, "bicubic")

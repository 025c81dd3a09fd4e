"""From a config to a model: pictures as BLIP-2's own processor makes them, and parts that train read in full precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip2s import SIDE_PX, random_blip2
from tiny_world import make_cfg
from transformers import BlipImageProcessor

from trainers.gated_blip2.building import build_view, load_towers
from trainers.gated_blip2.image_view import MEAN, STD, ImageViewFacts

CPU = torch.device("cpu")


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_view_makes_what_the_image_processor_makes(resample: str) -> None:
    """Pictures of any form become squares whole; the other interpolation would differ ten times as much."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8))
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = BlipImageProcessor(size=size, image_mean=MEAN, image_std=STD, resample=Image.Resampling[resample.upper()])
    found = build_view(ImageViewFacts(SIDE_PX, MEAN, STD, resample))(picture)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert found.shape == expected.shape and (found - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    ("preset", "full"),
    [
        ("gates_proj", ("query_tokens", "language_projection.")),
        ("gates_xattn", ("query_tokens", "language_projection.", "qformer.")),
        ("original_live", ("query_tokens", "language_projection.", "qformer.", "vision_model.post_layernorm.")),
    ],
)
def test_parts_that_train_are_read_in_full_precision(
    preset: str, full: tuple[str, ...], tiny_world: Path, tmp_path: Path
) -> None:
    cfg = make_cfg(tiny_world, tmp_path / "run", "GatedBLIP2", {".PRESET": preset})
    stored = random_blip2().state_dict()
    model = load_towers(cfg, "bf16", CPU).loaded.model
    for name, parameter in model.named_parameters():
        expected = stored[name] if name.startswith(full) else stored[name].bfloat16()
        assert parameter.dtype == expected.dtype and torch.equal(parameter, expected), name


@pytest.mark.parametrize(("learned", "samples"), [("first", False), ("sample", True)])
def test_answers_are_sampled_if_asked_for(learned: str, samples: bool, tiny_world: Path, tmp_path: Path) -> None:
    cfg = make_cfg(tiny_world, tmp_path / "run", "GatedBLIP2", {".ANSWER.TRAIN": learned})
    assert load_towers(cfg, "fp32", CPU).views.samples_answers is samples


def test_only_original_has_the_text_branch(tiny_world: Path, tmp_path: Path) -> None:
    found = {}
    for preset in ("qformer", "original_live", "original"):
        cfg = make_cfg(tiny_world, tmp_path / "run", "GatedBLIP2", {".PRESET": preset})
        config = load_towers(cfg, "fp32", CPU).loaded.model.config.qformer_config
        found[preset] = config.use_qformer_text_input
    assert found == {"qformer": False, "original_live": False, "original": True}

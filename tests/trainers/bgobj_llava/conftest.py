"""What the tests of this room share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

ASSETS = Path(__file__).parents[3] / "trainers" / "bgobj_llava" / "assets"


@pytest.fixture
def seven_b() -> LlavaForConditionalGeneration:
    """LLaVA-1.5-7B's shapes without weights, on the meta device."""
    config = LlavaConfig(**json.loads((ASSETS / "llava_1_5_7b.json").read_text("utf-8")))
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)

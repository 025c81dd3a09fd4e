"""Tiny random CLIPs for the tests of clip_ext."""

from typing import Callable

import pytest
import torch

from clip_ext.loader import LoadedClip, build_clip


@pytest.fixture(scope="session")
def make_config() -> Callable[..., dict]:
    """An open_clip config: head width 16, patch 8, image 32 px (16 patches), vocabulary of tiny12."""

    def make(width: int = 32, depth: int = 12, embed_dim: int = 24, patch_size: int = 8, image_size: int = 32) -> dict:
        return {
            "embed_dim": embed_dim,
            "vision_cfg": {
                "image_size": image_size,
                "layers": depth,
                "width": width,
                "head_width": 16,
                "patch_size": patch_size,
            },
            "text_cfg": {"context_length": 32, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 1},
        }

    return make


@pytest.fixture(scope="session")
def make_clip(make_config: Callable[..., dict]) -> Callable[..., LoadedClip]:
    """Build a tiny random CLIP; arguments as for `make_config`."""

    def make(**sizes: int) -> LoadedClip:
        return build_clip(make_config(**sizes), name="tiny random")

    return make


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

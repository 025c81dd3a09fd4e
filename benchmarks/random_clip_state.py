"""Weights of a small random CLIP with a vision transformer, in OpenAI's naming."""

from __future__ import annotations

import torch

CONTEXT_LENGTH = 77
VOCAB_SIZE = 49408
PATCH_SIZE = 32
GRID = 2  # patches per side


def random_clip_state(
    *, vision_width: int, text_width: int, layers: int, embed_dim: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return random weights that CLIP code in OpenAI's layout can load.

    Args:
        vision_width: Width of the image tower, a multiple of 64.
        text_width: Width of the text tower, a multiple of 64.
        layers: Blocks of each tower.
        embed_dim: Width of the joint space.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    state = {
        "visual.class_embedding": draw(vision_width),
        "visual.positional_embedding": draw(GRID**2 + 1, vision_width),
        "visual.conv1.weight": draw(vision_width, 3, PATCH_SIZE, PATCH_SIZE) * PATCH_SIZE**-0.5,
        "visual.proj": draw(vision_width, embed_dim),
        "positional_embedding": draw(CONTEXT_LENGTH, text_width),
        "token_embedding.weight": draw(VOCAB_SIZE, text_width),
        "text_projection": draw(text_width, embed_dim),
        "logit_scale": torch.tensor(2.6593),  # ln(1 / 0.07), where CLIP's training starts
    }
    norms = {"visual.ln_pre": vision_width, "visual.ln_post": vision_width, "ln_final": text_width}
    for tower, width in (("visual.transformer", vision_width), ("transformer", text_width)):
        for layer in range(layers):
            block = f"{tower}.resblocks.{layer}"
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            state |= {
                f"{block}.attn.in_proj_weight": draw(3 * width, width),
                f"{block}.attn.in_proj_bias": torch.zeros(3 * width),
                f"{block}.attn.out_proj.weight": draw(width, width),
                f"{block}.attn.out_proj.bias": torch.zeros(width),
                f"{block}.mlp.c_fc.weight": draw(4 * width, width),
                f"{block}.mlp.c_fc.bias": torch.zeros(4 * width),
                f"{block}.mlp.c_proj.weight": draw(width, 4 * width),
                f"{block}.mlp.c_proj.bias": torch.zeros(width),
            }
    for name, width in norms.items():
        state |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    return state

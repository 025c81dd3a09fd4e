"""A random BLIP-2 with gates on its Q-Former, and ways to run it without its vision tower and language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tiny_blip2s import random_blip2
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration

from trainers.gated_blip2.gate_hooks import GateContext, GateHooks, attach
from trainers.gated_blip2.gates import Conditioner, GateOptions
from trainers.gated_blip2.presets import PRESETS, build_conditioner

STYLE_WIDTH, N_IMAGES, N_TOKENS, N_WORDS = 12, 3, 5, 6


@dataclass
class Gated:
    """BLIP-2 with attached gates."""

    blip2: Blip2ForConditionalGeneration
    conditioner: Conditioner
    context: GateContext
    hooks: GateHooks

    def factors(self, style: Tensor) -> dict:
        """Factors for style vectors and a fixed question each."""
        dtype = style.dtype
        words, mask = noise(len(style), N_WORDS, 32, seed=7).to(dtype), torch.ones(len(style), N_WORDS, dtype=torch.bool)
        asked = {"no": (), "mean": (words.mean(1),), "tokens": (words, mask)}[self.conditioner.needs_question]
        return self.conditioner(style, *asked)

    def queries(self, style: Tensor, tokens: Tensor) -> Tensor:
        """Output of the gated Q-Former."""
        self.context.set(self.factors(style))
        return run_qformer(self.blip2, tokens)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(N_IMAGES, N_TOKENS, 32, seed=2).to(dtype)


def styles(dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(N_IMAGES, STYLE_WIDTH, seed=3).to(dtype)


def run_qformer(blip2: Blip2ForConditionalGeneration, tokens: Tensor) -> Tensor:
    queries = blip2.query_tokens.expand(len(tokens), -1, -1)
    return blip2.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state


def gated(
    options: GateOptions | None = None,
    *,
    preset: str = "gates",
    dtype: torch.dtype = torch.float32,
    attn: str = "eager",
    stir: float = 0.0,
) -> Gated:
    """A random BLIP-2 with the gates of a preset.

    Args:
        stir: Standard deviation of noise on all parameters of the gates: 0 leaves them fresh.
    """
    blip2 = random_blip2(dtype=dtype, attn=attn, text_input=PRESETS[preset].text_branch)
    torch.manual_seed(5)
    conditioner = build_conditioner(PRESETS[preset], blip2, STYLE_WIDTH, options or GateOptions(hidden=16))
    if stir:
        with torch.no_grad():
            for parameter in conditioner.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=stir)
    if dtype == torch.float64:
        conditioner.double()
    context = GateContext()
    return Gated(blip2, conditioner.eval(), context, attach(blip2.qformer, context, conditioner.layers))


def cross_attention(blip2: Blip2ForConditionalGeneration, layer: int) -> nn.Module:
    """Attention over the image of a Q-Former layer, numbered from 1."""
    return blip2.qformer.encoder.layer[layer - 1].crossattention.attention

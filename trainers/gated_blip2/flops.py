"""What a sample costs in a BLIP-2 with gates, by arithmetic: forward by part, and a training step with and without the cache.

Counted are matrix products, convolutions and attention, 2 operations per multiply-add. Not counted: the gates (0.02 GFLOP at
full size), norms, activation functions, softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2Config

from trainers.gated_blip2.style.networks import build_network
from trainers.transformer_cost import Stack

__all__ = ["SampleCost", "count_operations", "sample_cost", "style_cost"]


@dataclass(frozen=True)
class SampleCost:
    """Operations of one sample's forward pass by part.

    Attributes:
        vision: The ViT with its patch embedding.
        style: The style encoder; 0 without one.
        qformer: Queries through all layers, and the image's keys and values in those with cross-attention.
        projection: From the Q-Former's width to the language model's.
        language: The language model with the scores of all its positions.
    """

    vision: float
    style: float
    qformer: float
    projection: float
    language: float

    @property
    def forward(self) -> float:
        return self.vision + self.style + self.qformer + self.projection + self.language

    @property
    def cached_step(self) -> float:
        """A training step whose frozen features are cached.

        The language model is frozen, so it computes no gradients of weights: 2 times its forward. The bridge before it counts
        3 times, as if all of it trained; where only gates and projection do, it is up to 2 % of the step less.
        """
        return 3 * (self.qformer + self.projection) + 2 * self.language

    @property
    def live_step(self) -> float:
        """A training step that runs ViT and style encoder too, forward only."""
        return self.cached_step + self.vision + self.style

    @property
    def ratio(self) -> float:
        """`cached_step` over `live_step`."""
        return self.cached_step / self.live_step

    def to_dict(self) -> dict[str, float]:
        """Return the operations by name."""
        return {**asdict(self), "forward": self.forward, "cached_step": self.cached_step, "live_step": self.live_step}


def sample_cost(config: Blip2Config, *, n_text: int, style: float = 0.0, side_px: int | None = None) -> SampleCost:
    """Return what a sample costs.

    Args:
        config: Of the BLIP-2.
        n_text: Text tokens: prompt, answer and start token.
        style: Of the style encoder, as from `style_cost`.
        side_px: Of the image; None = that of the configuration.
    """
    vision, bridge, text = config.vision_config, config.qformer_config, config.text_config
    n_patches = ((side_px or vision.image_size) // vision.patch_size) ** 2
    patches = 2.0 * n_patches * 3 * vision.patch_size**2 * vision.hidden_size
    rows = config.num_query_tokens + n_text
    tower = _stack(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size)
    decoder = _stack(text.num_hidden_layers, text.hidden_size, text.ffn_dim)
    return SampleCost(
        vision=patches + tower.flops(n_patches + 1),
        style=style,
        qformer=_qformer_cost(config, n_patches + 1),
        projection=2.0 * config.num_query_tokens * bridge.hidden_size * text.hidden_size,
        language=decoder.flops(rows) + 2.0 * rows * text.hidden_size * text.vocab_size,
    )


def style_cost(arch: str, side_px: int) -> float:
    """Return what a style encoder costs per image, counted on tensors without memory.

    Args:
        arch: `STYLE.ARCH`.
        side_px: Of its view.
    """
    with torch.device("meta"):
        network = build_network(arch, None).eval()
        image = torch.empty(1, 3, side_px, side_px)
    return count_operations(lambda: network(image))


def count_operations(work: Callable[[], object]) -> float:
    """Return the operations of matrix products, convolutions and attention that `work` does, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _stack(n_blocks: int, width: int, inner: int) -> Stack:
    """Blocks of four square maps and two around an activation function."""
    return Stack(n_blocks, 4 * width**2 + 2 * width * inner, width, width)


def _qformer_cost(config: Blip2Config, n_tokens: int) -> float:
    bridge, queries = config.qformer_config, config.num_query_tokens
    width, seen = bridge.hidden_size, bridge.encoder_hidden_size
    n_cross = -(-bridge.num_hidden_layers // bridge.cross_attention_frequency)  # the first layer and every n-th after it
    cross = 4.0 * queries * width**2 + 4.0 * n_tokens * seen * width + 4.0 * queries * n_tokens * width
    return _stack(bridge.num_hidden_layers, width, bridge.intermediate_size).flops(queries) + n_cross * cross

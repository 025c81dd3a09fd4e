"""From a CLIP vector to a soft prompt: the noise that stands in for the gap between texts and images, and the network.

ViECap: https://arxiv.org/abs/2307.16525; the network is ClipCap's (https://arxiv.org/abs/2111.09734).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MappingNetwork", "noise_variance_for", "soft_input"]

REFERENCE_WIDTH = 512  # E for which the published variance was chosen


def noise_variance_for(width: int, variance: float, *, rescale: bool) -> float:
    """Return the variance per dimension that disturbs vectors of a width as much as `variance` does those of 512.

    A unit vector v and v' = normalise(v + eps) have a cosine of about 1 / sqrt(1 + E s2): only the product E s2 counts.

    Args:
        width: E.
        variance: `NOISE_VARIANCE`, meant for 512 dimensions.
        rescale: `NOISE_RESCALE`; False returns `variance`.
    """
    return variance * REFERENCE_WIDTH / width if rescale else variance


def soft_input(
    features: Tensor,
    *,
    variance: float = 0.0,
    normalise: bool = True,
    rescale: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return what the mapping network reads: the vector, of length 1 and, in training, with noise.

    Args:
        features: CLIP vectors of any length, (B, E).
        variance: Of the noise per dimension at E = 512; 0 = none.
        normalise: Make them unit vectors. Noise is always added to a unit vector, and the sum made one again.
        rescale: See `noise_variance_for`.
        generator: Of the noise, on the CPU or on the features' device; None, as in prediction: no noise.
    Returns:
        (B, E), fp32; the features' own dtype if that is fp64.
    """
    features = features if features.dtype == torch.float64 else features.float()
    if normalise:
        features = F.normalize(features, dim=-1)
    if generator is None or variance == 0:
        return features
    deviation = noise_variance_for(features.shape[-1], variance, rescale=rescale) ** 0.5
    noise = torch.randn(features.shape, generator=generator, dtype=features.dtype, device=generator.device)
    if generator.device.type == "cpu" and features.is_cuda:
        noise = noise.pin_memory()
    noise = noise.to(features.device, non_blocking=True)
    return F.normalize(F.normalize(features, dim=-1) + deviation * noise, dim=-1)


class MappingNetwork(nn.Module):
    """Pre-LN transformer that turns a CLIP vector into the vectors of a soft prompt.

    The vector becomes `project_length` tokens, learned constants follow, and what the blocks make of the constants is the
    result. No dropout, no final LayerNorm.

    Attributes:
        constants: Learned start of the soft prompt, (P, d).

    Args:
        d_clip: Width E of the CLIP vector.
        d_model: Width d of the language model.
        prefix_length: P, tokens of the soft prompt.
        project_length: Tokens that the vector is projected to.
        n_layers: Blocks.
        n_heads: Attention heads; they divide `d_model`.
    Raises:
        ValueError: If they do not.
    """

    def __init__(
        self,
        d_clip: int,
        d_model: int,
        *,
        prefix_length: int = 10,
        project_length: int = 10,
        n_layers: int = 8,
        n_heads: int = 8,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(
                f"TRAINER.VIECAP.NUM_HEADS is {n_heads}; expected a divisor of the language model's width {d_model}"
            )
        self.project_length = project_length
        self.project = nn.Linear(d_clip, project_length * d_model)
        self.constants = nn.Parameter(torch.randn(prefix_length, d_model))
        self.blocks = nn.ModuleList(MappingBlock(d_model, n_heads) for _ in range(n_layers))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return soft prompts, (B, P, d), for vectors from `soft_input`, (B, E)."""
        tokens = self.project(vectors.to(self.project.weight.dtype)).unflatten(-1, (self.project_length, -1))
        tokens = torch.cat([tokens, self.constants.expand(len(tokens), -1, -1)], dim=1)  # fp32 under autocast, too
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, self.project_length :]


class MappingBlock(nn.Module):
    """Attention over all tokens, then an MLP of twice the width; each after a LayerNorm and added to its input.

    Queries, keys and values have no bias; keys are the first half of `keys_values`.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape, (B, L, d)."""
        tokens = tokens + self._attend(self.norm_attention(tokens))
        return tokens + self.narrow(F.relu(self.widen(self.norm_mlp(tokens))))

    def _attend(self, tokens: Tensor) -> Tensor:
        keys, values = self.keys_values(tokens).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (self.queries(tokens), keys, values))
        return self.output(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

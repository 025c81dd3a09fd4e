"""Random captioners in evaluation mode, and batches for them."""

from __future__ import annotations

import torch
from tiny_gpt2s import random_gpt2
from torch import Tensor

from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout

D_CLIP, D_MODEL, SOFT = 16, 32, 3
SOFT_HARD = PromptLayout(soft_tokens=SOFT)


def random_captioner(
    layout: PromptLayout = SOFT_HARD, *, frozen: bool = False, seed: int = 0, sharpness: float = 0.0
) -> PrefixCaptioner:
    """Build one. `sharpness` above 0 gives it an output embedding of its own, so large that tokens differ in probability."""
    language_model, _ = random_gpt2(width=D_MODEL, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if sharpness:
            head = language_model.lm_head
            head.weight = torch.nn.Parameter(sharpness * torch.randn_like(head.weight))
        mapping = MappingNetwork(
            D_CLIP, D_MODEL, prefix_length=layout.soft_tokens, project_length=2, n_layers=2, n_heads=2
        )  # fmt: skip
    return PrefixCaptioner(language_model, mapping if layout.soft_tokens else None, layout, frozen=frozen).eval()


def random_batch(
    captioner: PrefixCaptioner, batch: int = 6, *, multiple: int = 4, seed: int = 0, low: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return vectors (B, E), ids (B, T) padded with 0, hard-prompt and caption lengths; ids are `low` or more."""
    generator = torch.Generator().manual_seed(seed)
    layout = captioner.layout
    n_hard = torch.randint(5, 10, (batch,), generator=generator) * int(layout.hard)
    n_caption = torch.randint(3, 14, (batch,), generator=generator)
    longest = int((n_hard + n_caption).max()) + layout.soft_tokens
    width = -(-longest // multiple) * multiple - layout.soft_tokens
    ids = torch.randint(low, captioner.vocabulary_size, (batch, width), generator=generator)
    ids = ids.masked_fill(torch.arange(width) >= (n_hard + n_caption)[:, None], 0)
    return torch.randn(batch, D_CLIP, generator=generator), ids, n_hard, n_caption

"""The conditioner of the original recipe: style and question are mixed into one controller, which drives a FiLM gate per layer.

Differs from that recipe in this, on purpose: heads start at zero, so the model starts as BLIP-2; the style projection gets a
gradient; the question alone is read, never the answer; padding does not move the gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.gated_blip2.gates import LayerFactors, Parts, expand_gate, init_heads
from trainers.precision import full_precision

__all__ = ["FilmGate", "OriginalConditioner", "PromptMapper"]

STYLE_WEIGHT = 4.0  # of the style token in the controller; a question token counts 1
GATE_HIDDEN, MAPPER_HIDDEN, DROPOUT = 512, 1024, 0.1


class OriginalConditioner(nn.Module):
    """Style projection, prompt mapper and a FiLM gate per layer.

    Attributes:
        layers: As given.
        needs_question: `tokens`.

    Args:
        style_width: W.
        question_width: Dq, of the language model's token embeddings.
        layers: Q-Former layers that are gated, numbered from 1.
        width: d, of the Q-Former.
        n_heads: Its attention heads: gates are per head.
        init_std: Of fresh gate heads; 0 starts as BLIP-2, the old recipe had 0.01.
    """

    needs_question = "tokens"

    def __init__(
        self,
        style_width: int,
        *,
        question_width: int,
        layers: Sequence[int],
        width: int,
        n_heads: int,
        init_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.width = tuple(layers), width
        self.style_projection = nn.Linear(style_width, width)
        self.prompt_mapper = PromptMapper(width, question_width)
        self.gates = nn.ModuleDict({str(layer): FilmGate(width, n_heads, init_std) for layer in self.layers})

    def forward(
        self, style: Tensor, question: Tensor | None = None, question_mask: Tensor | None = None
    ) -> dict[int, LayerFactors]:
        """Return the factors of each layer.

        Args:
            style: (B, W); zeros for an unknown style.
            question: Embeddings of each question's own tokens, (B, Q, Dq).
            question_mask: Which of them are no padding, (B, Q), bool.
        Raises:
            ValueError: If there is no question.
        """
        if question is None or question_mask is None:
            raise ValueError("the gates of the presets 'original' and 'original_live' read the question: pass tokens and mask")
        with full_precision(style.device):
            dtype = self.style_projection.weight.dtype
            tokens = self.prompt_mapper(self.style_projection(style.to(dtype)), question.to(dtype))
            controller = _weighted_mean(tokens, question_mask)
            return {int(layer): self._factors(*gate(controller)) for layer, gate in self.gates.items()}

    def parts(self) -> Parts:
        """Return its parameters by group; the MLPs of the FiLM gates are the trunk."""
        groups: Parts = {"gate_trunk": [], "gate_heads": [], "prompt_mapper": [], "style_projection": []}
        for name, parameter in self.named_parameters():
            first, *rest = name.split(".")
            of_gate = "gate_heads" if rest[1:2] in (["scale"], ["shift"]) else "gate_trunk"
            groups[of_gate if first == "gates" else first].append((name, parameter))
        return groups

    def _factors(self, scale: Tensor, shift: Tensor) -> LayerFactors:
        """One pair for keys and values alike; softmax ignores the shift of the keys, which is kept for fidelity."""
        factor, shift = expand_gate(1 + scale, self.width), expand_gate(shift, self.width)
        return LayerFactors(key=factor, value=factor, shift=shift, key_shift=shift)


class PromptMapper(nn.Module):
    """Brings the style and the question's tokens to one width and lets an MLP work on each.

    Args:
        width: d, of the projected style and of the result.
        question_width: Dq.
    """

    def __init__(self, width: int, question_width: int) -> None:
        super().__init__()
        self.style = nn.Linear(width, width)
        self.question = nn.Linear(question_width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, MAPPER_HIDDEN), nn.GELU(), nn.Linear(MAPPER_HIDDEN, width), nn.Dropout(DROPOUT))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, style: Tensor, question: Tensor) -> Tensor:
        """Return (B, 1 + Q, d), the style first, from (B, d) and (B, Q, Dq)."""
        tokens = torch.cat([self.style(style).unsqueeze(1), self.question(question)], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.norm(tokens)


class FilmGate(nn.Module):
    """From the controller to a layer's factors and shifts per head (FiLM: https://arxiv.org/abs/1709.07871)."""

    def __init__(self, width: int, n_heads: int, init_std: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, GATE_HIDDEN)
        self.mix = nn.Linear(GATE_HIDDEN, GATE_HIDDEN)
        self.scale = nn.Linear(GATE_HIDDEN, n_heads)
        self.shift = nn.Linear(GATE_HIDDEN, n_heads)
        init_heads((self.scale, self.shift), init_std)

    def forward(self, controller: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates and shifts, (B, H) each, from (B, d)."""
        inner = self.mix(F.gelu(self.widen(self.norm(controller))))
        return self.scale(inner), self.shift(inner)


def _weighted_mean(tokens: Tensor, question_mask: Tensor) -> Tensor:
    """Mean of the style token and the real question tokens, (B, d)."""
    weights = F.pad(question_mask.to(tokens.dtype), (1, 0), value=STYLE_WEIGHT).unsqueeze(-1)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)

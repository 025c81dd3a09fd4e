"""From a style vector to factors for the Q-Former's keys and values: a shared trunk and one zero head per layer.

Fresh heads are zero, so every factor is exactly 1 and every shift exactly 0: the model then is BLIP-2, bit for bit. This is
the only zero on the path from the loss to a weight; heads learn from the first update on, the trunk from the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.precision import full_precision

__all__ = ["Conditioner", "GateOptions", "LayerFactors", "Parts", "StyleGate", "expand_gate", "init_heads", "mean_question"]

NODE = "TRAINER.GATEDBLIP2"
SITES = {"k": ("key",), "v": ("value",), "kv": ("key", "value")}
GRANULARITIES = ("scalar", "head", "channel")
Parts = dict[str, "list[tuple[str, nn.Parameter]]"]
PHI = {"tanh": torch.tanh, "film": lambda gate: gate}


@dataclass(frozen=True)
class LayerFactors:
    """What a cross-attention layer does to its keys and values: K' = K key + key_shift, V' = V value + shift; None = nothing.

    All are (B, 1, d), fp32: the same for every image token, and 1 + phi(gate) already.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    shift: Tensor | None = None
    key_shift: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Samples that they were made for; 0 if the layer is left alone."""
        given = [part for part in (self.key, self.value, self.shift, self.key_shift) if part is not None]
        return len(given[0]) if given else 0


class Conditioner(Protocol):
    """A module that makes factors.

    Attributes:
        layers: Q-Former layers that it makes factors for, numbered from 1.
        needs_question: `no`; `mean`: of its tokens' embeddings, (B, Dq); `tokens`: all of them, (B, Q, Dq), with their mask.
    """

    layers: tuple[int, ...]
    needs_question: str

    def __call__(
        self, style: Tensor, question: Tensor | None = None, question_mask: Tensor | None = None
    ) -> dict[int, LayerFactors]:
        """Return the factors of each gated Q-Former layer (numbered from 1) for style vectors, (B, W)."""

    def parts(self) -> Parts:
        """Return its parameters by the group that they train in, under their names in its state dict."""


@dataclass(frozen=True)
class GateOptions:
    """`GATE.*`.

    Attributes:
        hidden: Width of the trunk.
        layers: Q-Former layers, numbered from 1; () = all that have cross-attention.
        sites: What is gated: `k`, `v` or `kv`.
        granularity: Numbers per layer and part: one (`scalar`), one per attention head (`head`) or per channel (`channel`).
        phi: Factor 1 + phi(gate): `tanh`, within (0, 2), or `film`, the gate itself.
        beta_v: Values are shifted, too.
        question: The trunk also reads the mean embedding of the question.
        init_std: Standard deviation of fresh heads; above 0 the model is not BLIP-2 at the start.
    """

    hidden: int = 512
    layers: tuple[int, ...] = ()
    sites: str = "kv"
    granularity: str = "channel"
    phi: str = "tanh"
    beta_v: bool = True
    question: bool = False
    init_std: float = 0.0

    def problems(self) -> list[str]:
        """Return one message per value that is not allowed, whatever the model."""
        allowed = (("SITES", self.sites, SITES), ("GRANULARITY", self.granularity, GRANULARITIES), ("PHI", self.phi, PHI))
        found = [
            f"{NODE}.GATE.{key} is {value!r}; expected one of {', '.join(values)}"
            for key, value, values in allowed
            if value not in values
        ]
        if self.hidden < 1:
            found.append(f"{NODE}.GATE.HIDDEN is {self.hidden}; expected a width of at least 1")
        if self.init_std < 0:
            found.append(f"{NODE}.GATE.INIT_STD is {self.init_std}; expected 0 (the model starts as BLIP-2) or more")
        return found


class StyleGate(nn.Module):
    """Gates of every layer from the style: u = GELU(W1 LN(s) + b1 [+ Wq m]), then (gK, gV, bV) = U_l u + c_l per layer l.

    Attributes:
        layers: As given.
        needs_question: `mean` with the question term, else `no`.

    Args:
        style_width: W.
        layers: Q-Former layers that are gated, numbered from 1.
        width: d, of the Q-Former's keys and values.
        n_heads: Attention heads; head h owns the h-th share of the channels.
        options: See there; its `layers` and `question` are decided by `layers` and `question_width`.
        question_width: Dq, of the embeddings whose mean is m; 0 = no question term.
    Raises:
        ValueError: If an option is not allowed or no layer is given (lists all reasons).
    """

    def __init__(
        self,
        style_width: int,
        *,
        layers: Sequence[int],
        width: int,
        n_heads: int,
        options: GateOptions = GateOptions(),
        question_width: int = 0,
    ) -> None:
        super().__init__()
        problems = options.problems()
        if not layers:
            problems.append(f"{NODE}.GATE.LAYERS: no layer is left to gate; expected Q-Former layers with cross-attention")
        if problems:
            raise ValueError("; ".join(problems))
        self.layers, self.width, self.phi = tuple(layers), width, options.phi
        self._outputs = [*SITES[options.sites], *(["shift"] if options.beta_v and "v" in options.sites else [])]
        per_part = {"scalar": 1, "head": n_heads, "channel": width}[options.granularity]
        self.norm = nn.LayerNorm(style_width)
        self.project = nn.Linear(style_width, options.hidden)
        self.question = nn.Linear(question_width, options.hidden, bias=False) if question_width else None
        if self.question is not None:
            nn.init.zeros_(self.question.weight)
        self.heads = nn.ModuleDict({str(layer): nn.Linear(options.hidden, len(self._outputs) * per_part) for layer in layers})
        init_heads(self.heads.values(), options.init_std)
        self.needs_question = "mean" if question_width else "no"

    def forward(
        self, style: Tensor, question: Tensor | None = None, question_mask: Tensor | None = None
    ) -> dict[int, LayerFactors]:
        """Return the factors of each layer.

        Args:
            style: (B, W); zeros for an unknown style, which the norm maps to its learned bias.
            question: Mean embedding of each question, (B, Dq), with the question term only; see `mean_question`.
            question_mask: Not used.
        Raises:
            ValueError: If the question term has no question.
        """
        # In fp32 whatever autocast says: a factor near 1 keeps 8 bits in bf16, and its steps would be lost.
        with full_precision(style.device):
            inner = self.project(self.norm(style.to(self.project.weight.dtype)))
            if self.question is not None:
                if question is None:
                    raise ValueError(f"{NODE}.GATE.QUESTION is on, and the gates got no question; pass its mean embedding")
                inner = inner + self.question(question.to(inner.dtype))
            inner = F.gelu(inner)
            return {int(layer): self._factors(head(inner)) for layer, head in self.heads.items()}

    def parts(self) -> Parts:
        """Return trunk and heads apart."""
        named = list(self.named_parameters())
        return {
            "gate_trunk": [pair for pair in named if not pair[0].startswith("heads.")],
            "gate_heads": [pair for pair in named if pair[0].startswith("heads.")],
        }

    def _factors(self, gates: Tensor) -> LayerFactors:
        """Expand a layer's gates, (B, parts x g), to channels."""
        parts = dict(zip(self._outputs, gates.chunk(len(self._outputs), dim=-1), strict=True))
        shift = parts.pop("shift", None)
        factors = {name: expand_gate(1 + PHI[self.phi](gate), self.width) for name, gate in parts.items()}
        return LayerFactors(**factors, shift=None if shift is None else expand_gate(shift, self.width))


def init_heads(heads: Iterable[nn.Linear], std: float) -> None:
    """Let heads start at zero, or for `std` above 0 with random weights."""
    for head in heads:
        nn.init.normal_(head.weight, std=std) if std else nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)


def expand_gate(gate: Tensor, width: int) -> Tensor:
    """Return (B, 1, width) from (B, g): each number covers its share of neighbouring channels."""
    return gate.repeat_interleave(width // gate.shape[-1], dim=-1).unsqueeze(1)


def mean_question(embeds: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the real tokens' embeddings.

    Args:
        embeds: Of the question's own tokens, (B, Q, Dq): never those of the answer or of the template.
        mask: Real tokens, (B, Q), bool; a question without any has the mean 0.
    Returns:
        (B, Dq), fp32.
    """
    embeds, weights = embeds.float(), mask.unsqueeze(-1).float()
    return (embeds * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

"""`PrefixCaptioner`: a language model behind a soft and a hard prompt, and its loss.

One builder lays out soft prompt, hard prompt and caption, for training, evaluation and prediction alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from trainers.token_loss import TokenLoss
from trainers.viecap.network.labels import find_label_positions
from trainers.viecap.network.language_model import hidden_states, longest_sequence
from trainers.viecap.network.mapping import MappingNetwork

__all__ = ["PrefixCaptioner", "PromptLayout"]


@dataclass(frozen=True)
class PromptLayout:
    """Which prompts there are, and in which order; the caption follows both.

    Attributes:
        hard: Whether there is a hard prompt (`USING_HARD_PROMPT`).
        soft_first: Soft prompt before the hard one (`SOFT_PROMPT_FIRST`).
        soft_tokens: P; 0 = no soft prompt (`ONLY_HARD_PROMPT`).
    """

    hard: bool = True
    soft_first: bool = True
    soft_tokens: int = 10

    def __post_init__(self) -> None:
        if not self.hard and not self.soft_tokens:
            raise ValueError("TRAINER.VIECAP.ONLY_HARD_PROMPT without USING_HARD_PROMPT leaves no prompt; expected one or both")


class PrefixCaptioner(nn.Module):
    """Language model, conditioned on the soft prompt of a CLIP vector and on the ids of a hard prompt.

    Attributes:
        language_model: Causal language model of transformers.
        mapping: CLIP vector -> soft prompt; None without a soft prompt.
        layout: Which prompts, in which order.
        max_positions: Longest sequence, soft prompt included; None = not limited.

    Args:
        language_model: See there.
        mapping: Makes `layout.soft_tokens` vectors.
        layout: See there.
        frozen: The language model gets no gradients and never leaves evaluation mode; gradients pass through it.
    Raises:
        ValueError: If mapping network and layout disagree.
    """

    def __init__(
        self, language_model: PreTrainedModel, mapping: MappingNetwork | None, layout: PromptLayout, *, frozen: bool = False
    ) -> None:
        super().__init__()
        made = 0 if mapping is None else len(mapping.constants)
        if made != layout.soft_tokens:
            raise ValueError(f"the mapping network makes {made} soft-prompt tokens; the layout has {layout.soft_tokens}")
        self.language_model, self.mapping, self.layout, self.frozen = language_model, mapping, layout, frozen
        self.max_positions = longest_sequence(language_model)
        if frozen:
            language_model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PrefixCaptioner:
        """See `nn.Module`; a frozen language model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.language_model.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Of the language model."""
        return self.language_model.get_input_embeddings().weight.device

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output embedding."""
        return self.language_model.get_output_embeddings().out_features

    def embed(self, ids: Tensor) -> Tensor:
        """Return the language model's vectors of ids: (...) -> (..., d)."""
        return self.language_model.get_input_embeddings()(ids)

    def build_inputs_embeds(self, soft: Tensor | None, ids: Tensor, n_hard: Tensor) -> Tensor:
        """Lay out prompts and captions.

        Args:
            soft: Soft prompts, (B, P, d); None without one.
            ids: Hard prompt, caption and padding of every row, (B, T), int64, on the device.
            n_hard: Hard-prompt tokens per row, (B,), int64; on the CPU or the device.
        Returns:
            (B, P + T, d): the prompts in the layout's order, then caption and padding.
        Raises:
            ValueError: If that is more than the language model has positions.
        """
        self.check_length(self.layout.soft_tokens + ids.shape[1])
        words = self.embed(ids)
        if soft is None:
            return words
        both = torch.cat([soft, words], dim=1)
        if self.layout.soft_first or not self.layout.hard:
            return both
        n_soft, place = soft.shape[1], torch.arange(both.shape[1], device=both.device)[None]
        n_hard = self._to_device(n_hard)[:, None]
        # Where in `both` comes what stands here: hard prompt first, then the soft one; captions stay.
        source = torch.where(place < n_hard + n_soft, place - n_hard, place)
        source = torch.where(place < n_hard, place + n_soft, source)
        return both.gather(1, source[..., None].expand(-1, -1, both.shape[2]))

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence is longer than the language model can read."""
        if self.max_positions is not None and length > self.max_positions:
            raise ValueError(
                f"a sequence has {length} tokens; TRAINER.VIECAP.LANGUAGE_MODEL has {self.max_positions} positions. Lower "
                "CONTINUOUS_PROMPT_LENGTH, MAX_NUM_OF_ENTITIES, MAX_CAPTION_TOKENS or MAX_NEW_TOKENS"
            )

    def soft_prompt(self, vectors: Tensor | None) -> Tensor | None:
        """Return soft prompts, (B, P, d), of vectors from `soft_input`, (B, E); None without a mapping network."""
        return None if self.mapping is None else self.mapping(vectors)

    def loss(self, vectors: Tensor | None, ids: Tensor, n_hard: Tensor, n_caption: Tensor) -> TokenLoss:
        """Return the cross-entropy of the captions; the vocabulary's scores are computed for their tokens only.

        No key mask: padding comes after all labels, so no label sees it.

        Args:
            vectors: From `soft_input`, (B, E); ignored without a mapping network.
            ids: Hard prompt, caption and padding of every row, (B, T), int64, on the device.
            n_hard: Hard-prompt tokens per row, (B,), int64, on the CPU, where nobody waits for them.
            n_caption: Caption tokens per row, (B,), int64, on the CPU.
        """
        width = ids.shape[1]
        labels = find_label_positions(n_hard, n_caption, soft_tokens=self.layout.soft_tokens, width=width).to(ids.device)
        embeds = self.build_inputs_embeds(self.soft_prompt(vectors), ids, n_hard)
        hidden = self.hidden(embeds).flatten(0, 1)[labels.predicts]
        targets = ids.flatten()[labels.tokens]
        total = F.cross_entropy(self.scores(hidden), targets, reduction="sum")
        return TokenLoss(total, len(labels))

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the vocabulary's scores, (..., V), at least fp32, of hidden states (..., d)."""
        scores = self.language_model.get_output_embeddings()(hidden)
        return scores if scores.dtype == torch.float64 else scores.float()

    def prompt_embeds(self, vectors: Tensor | None, prompt_ids: Sequence[Sequence[int]]) -> Tensor:
        """Lay out prompts without captions.

        Args:
            vectors: From `soft_input`, (B, E); ignored without a mapping network.
            prompt_ids: Hard prompts, B lists of equal length; empty lists without a hard prompt.
        Returns:
            (B, L, d).
        """
        ids = torch.tensor([list(row) for row in prompt_ids], dtype=torch.long).to(self.device)
        n_hard = torch.full((len(ids),), ids.shape[1], dtype=torch.long)
        return self.build_inputs_embeds(self.soft_prompt(vectors), ids, n_hard)

    def hidden(self, embeds: Tensor, cache: Any = None) -> Tensor:
        """Return hidden states, (B, L, d), of vectors (B, L, d), behind what a cache holds, which grows; None = nothing."""
        return hidden_states(self.language_model, embeds, cache)

    def read(self, embeds: Tensor, cache: Any) -> Tensor:
        """Return the scores (B, V) after reading vectors (B, L, d) behind a cache, which grows."""
        return self.scores(self.hidden(embeds, cache)[:, -1])

    def _to_device(self, lengths: Tensor) -> Tensor:
        if lengths.device == self.device:
            return lengths
        lengths = lengths.pin_memory() if self.device.type == "cuda" else lengths
        return lengths.to(self.device, non_blocking=True)

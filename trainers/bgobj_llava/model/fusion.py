"""Decoder layers between the embeddings and the language model. Causal, so what comes first never depends on what follows."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask


class FusionStack(nn.Module):
    """Causal Llama layers in fp32 with the rotary positions of the language model.

    Args:
        language_model: transformers' Llama, whose first layers are copied.
        n_layers: Layers of the stack, at most those of the language model.
        init: `copy_zero`: copies whose outputs are zero, so that the stack does nothing at first; `copy`; `random`.
        seed: Of `random`.
    """

    def __init__(self, language_model: nn.Module, *, n_layers: int, init: str, seed: int) -> None:
        super().__init__()
        if n_layers > len(language_model.layers):
            raise ValueError(f"{n_layers} fusion layers are asked for; the language model has {len(language_model.layers)}")
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in language_model.layers[:n_layers]).float()
        self._config = language_model.config
        # In a list, so that the language model's module is not registered here as well.
        self._rotary = [language_model.rotary_emb]
        if init == "copy_zero":
            _zero_outputs(self.layers)
        if init == "random":
            _randomise(self.layers, self._config.initializer_range, seed)
        self.layers.requires_grad_(True)

    def forward(
        self, embeds: Tensor, positions: Tensor, attention_mask: Tensor | None, cache: DynamicCache | None = None
    ) -> Tensor:
        """Mix rows with those before them.

        Args:
            embeds: (B, L, d).
            positions: Rotary positions, (B, L), int64.
            attention_mask: Real rows, those of the cache included, (B, past + L), bool; None on the meta device only.
            cache: Keys and values of earlier rows; gets those of these.

        Returns:
            (B, L, d) in the dtype of `embeds`.
        """
        causal = create_causal_mask(
            config=self._config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=positions,
        )
        hidden, rotary = embeds, self._rotary[0](embeds, position_ids=positions)
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=causal, position_ids=positions, past_key_values=cache, use_cache=cache is not None,
                position_embeddings=rotary,
            )  # fmt: skip
        return hidden.to(embeds.dtype)


def _zero_outputs(layers: nn.ModuleList) -> None:
    for layer in layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)


def _randomise(layers: nn.ModuleList, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)

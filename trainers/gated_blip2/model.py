"""A BLIP-2 whose Q-Former looks at the picture through gates.

BLIP-2: https://arxiv.org/abs/2301.12597. The model stays Hugging Face's, is held by reference and driven from outside: picture
tokens, queries, language projection, language model. Without gates, and with fresh ones, the numbers are BLIP-2's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers import precision
from trainers.gated_blip2.gate_hooks import GateContext, attach
from trainers.gated_blip2.gates import Conditioner, LayerFactors, mean_question
from trainers.gated_blip2.generation import Generated, GenerateOptions, generate_answers
from trainers.gated_blip2.loading import LoadedBlip2
from trainers.gated_blip2.modes import settle_mode, silence_dropouts
from trainers.gated_blip2.prompts import IGNORED, TextBatch
from trainers.gated_blip2.weights import COMPUTE_DTYPES
from trainers.recomputing import recompute_layers
from trainers.token_loss import TokenLoss

__all__ = ["GatedBlip2Model", "PromptEmbeds"]


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """What enters the language model, which derives positions from the mask.

    Attributes:
        embeds: Projected queries, then text, (B, L, d).
        mask: Real columns, (B, L), int64.
    """

    embeds: Tensor
    mask: Tensor


class GatedBlip2Model(nn.Module):
    """BLIP-2 with gates on the Q-Former's cross-attention; it decides itself what runs under autocast.

    Attributes:
        context: Gives each forward pass its gates; its observer sees them.

    Args:
        loaded: The BLIP-2, frozen; what trains is thawed later, from outside.
        conditioner: Makes the gates; None: none are attached.
        post_ln_trains: The vision tower's last LayerNorm trains: picture tokens are taken before it.
        prec: Resolved precision: fp32, bf16, amp or fp16.
        grad_ckpt: In training, layers of the language model compute their activations again in the backward pass.
    Raises:
        ValueError: If the model was loaded for another precision.
    """

    def __init__(
        self,
        loaded: LoadedBlip2,
        *,
        conditioner: Conditioner | None = None,
        post_ln_trains: bool = False,
        prec: str = "fp32",
        grad_ckpt: bool = False,
    ) -> None:
        super().__init__()
        if loaded.dtype != COMPUTE_DTYPES[prec]:
            raise ValueError(f"the BLIP-2 was loaded in {loaded.dtype}; PREC {prec} needs {COMPUTE_DTYPES[prec]}")
        self.blip2, self.conditioner = loaded.model, conditioner
        self.post_ln_trains, self._grad_ckpt = post_ln_trains, grad_ckpt
        self.context = GateContext()
        self._tokenizer, self._stop_id, self._dtype = loaded.tokenizer, loaded.stop_id, loaded.dtype
        self._autocast_dtype = precision.autocast_dtype(prec)
        if conditioner is not None:
            self.hooks = attach(self.blip2.qformer, self.context, conditioner.layers)
        if grad_ckpt:
            silence_dropouts(self.blip2.language_model)
            recompute_layers(self.blip2.language_model.model.decoder.layers)
        self.train(False)

    # -- state of the module --------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.blip2.query_tokens.device

    @property
    def n_queries(self) -> int:
        return self.blip2.query_tokens.shape[1]

    def train(self, mode: bool = True) -> GatedBlip2Model:
        """Switch the mode; what is frozen stays in evaluation mode.

        Only a language model that recomputes its layers follows, as they would store everything otherwise; its dropouts are 0.
        """
        super().train(mode)
        settle_mode(self.blip2)
        if self._grad_ckpt:
            self.blip2.language_model.train(mode)
        return self

    @contextmanager
    def ungated(self) -> Iterator[None]:
        """Let the model run as if no gates were attached."""
        with self.context.ungated():
            yield

    # -- picture -> tokens ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Turn pictures into tokens, by the frozen tower in its own type.

        Args:
            pixels: Normalised RGB, (B, 3, S, S). Positions are stretched if S is not the tower's own.
        Returns:
            (B, N, Dv), CLS first; after the tower's last LayerNorm unless that one trains.
        """
        tower = self.blip2.vision_model
        with precision.full_precision(self.device):
            stretched = pixels.shape[-1] != tower.config.image_size
            embeds = tower.embeddings(pixels.to(self.device), interpolate_pos_encoding=stretched)
            tokens = tower.encoder(inputs_embeds=embeds).last_hidden_state
            return tokens if self.post_ln_trains else tower.post_layernorm(tokens)

    # -- tokens -> sequence ---------------------------------------------------------------------------------------------

    def build_inputs_embeds(self, tokens: Tensor, style: Tensor | None, text: TextBatch) -> PromptEmbeds:
        """Put queries and text together: the one place where training, evaluation, prediction and generation do so.

        Args:
            tokens: From `encode_images`, or a cache of it, (B, N, Dv).
            style: Style vectors, (B, W); not read without gates.
            text: Prompts, with or without answers.
        Raises:
            ValueError: If the numbers of pictures and texts differ, or there are gates and no styles.
        """
        if len(tokens) != len(text):
            raise ValueError(f"there are {len(tokens)} pictures and {len(text)} texts; expected one text per picture")
        text = text.to(self.device)
        words = self._embed(text.ids)
        queries = self._read_pictures(tokens.to(self.device, self._dtype), style, text).to(words.dtype)
        mask = torch.cat([text.mask.new_ones(queries.shape[:2]), text.mask], dim=1).long()
        return PromptEmbeds(torch.cat([queries, words], dim=1), mask)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.blip2.get_input_embeddings()(ids)

    def _read_pictures(self, tokens: Tensor, style: Tensor | None, text: TextBatch) -> Tensor:
        """Return projected queries, (B, n_queries, d)."""
        blip2 = self.blip2
        if self.conditioner is not None and not self.context.is_off:
            self.context.set(self._factors(style, text))
        if self.post_ln_trains:
            with precision.full_precision(self.device):
                norm = blip2.vision_model.post_layernorm
                tokens = norm(tokens.to(norm.weight.dtype)).to(self._dtype)
        dtype = blip2.qformer.layernorm.weight.dtype
        # A frozen Q-Former runs in the type it is stored in; one that trains is fp32 and runs under autocast.
        with precision.full_precision(self.device) if dtype == self._dtype else self._autocast():
            queries = blip2.query_tokens.expand(len(tokens), -1, -1).to(dtype)
            read = blip2.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        with self._autocast():
            return blip2.language_projection(read.to(self._dtype))

    def _factors(self, style: Tensor | None, text: TextBatch) -> dict[int, LayerFactors]:
        if style is None:
            raise ValueError("the model has gates and got no style vectors; expected one per picture, or `ungated`")
        style, wanted = style.to(self.device), self.conditioner.needs_question
        if wanted == "no":
            return self.conditioner(style)
        question = self._embed(text.question_ids)
        if wanted == "mean":
            return self.conditioner(style, mean_question(question, text.question_mask))
        return self.conditioner(style, question, text.question_mask)

    def _autocast(self) -> AbstractContextManager:
        return precision.autocast(self.device, self._autocast_dtype)

    # -- sequence -> scores ---------------------------------------------------------------------------------------------

    def loss(self, tokens: Tensor, style: Tensor | None, text: TextBatch) -> TokenLoss:
        """Return the cross-entropy of answers and their newlines, in fp32; only their rows of scores are computed.

        Args:
            tokens, style: As of `build_inputs_embeds`.
            text: Prompts with answers, best still on the CPU, where finding the answers makes nobody wait.
        """
        rows, columns = (text.labels != IGNORED).nonzero(as_tuple=True)
        targets = text.labels[rows, columns].to(self.device)
        hidden = self._run(self.build_inputs_embeds(tokens, style, text))
        # Each position says the token after it.
        read = hidden[rows.to(self.device), columns.to(self.device) + self.n_queries - 1]
        with precision.full_precision(self.device):
            scores = self.blip2.language_model.lm_head(read).float()
            return TokenLoss(F.cross_entropy(scores, targets, reduction="sum"), len(rows))

    def logits(self, tokens: Tensor, style: Tensor | None, text: TextBatch) -> Tensor:
        """Return the scores after every position, (B, L, V), queries and padding included."""
        hidden = self._run(self.build_inputs_embeds(tokens, style, text))
        with precision.full_precision(self.device):
            return self.blip2.language_model.lm_head(hidden)

    def _run(self, inputs: PromptEmbeds) -> Tensor:
        """Return the language model's final hidden states, (B, L, d)."""
        with precision.full_precision(self.device):
            decoder = self.blip2.language_model.model.decoder
            return decoder(inputs_embeds=inputs.embeds, attention_mask=inputs.mask, use_cache=False).last_hidden_state

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, style: Tensor | None, text: TextBatch, options: GenerateOptions | None = None
    ) -> list[Generated]:
        """Answer questions.

        Args:
            tokens, style: As of `build_inputs_embeds`.
            text: Prompts without answers, padded on the left.
            options: Of the search; None: greedy.
        Raises:
            ValueError: If texts are padded on the right or have answers, or could outgrow the language model.
        """
        if text.n_answer_tokens or not bool(text.mask[:, -1].all()):
            raise ValueError("answers are generated from texts without answers, padded on the left: collate(..., side='left')")
        was_training = self.training
        self.eval()
        try:
            inputs = self.build_inputs_embeds(tokens, style, text)
            with precision.full_precision(self.device):
                return generate_answers(
                    self.blip2.language_model, self._tokenizer, inputs.embeds, inputs.mask, options or GenerateOptions(),
                    stop_id=self._stop_id,
                )  # fmt: skip
        finally:
            if was_training:
                self.train()

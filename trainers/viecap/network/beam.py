"""The paper's beam search: every hypothesis, finished or not, competes in each step by its average log-probability.

Hugging Face's search compares sums while it runs and sets finished hypotheses apart; its best one can be another. A finished
hypothesis keeps sum and length here and may be pushed out later. Images of a batch are searched together; the language model
reads on only for what is not finished.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from trainers.viecap.network.model import PrefixCaptioner

__all__ = ["Hypotheses", "beam_search"]

PAD = -1  # stands behind the end of finished hypotheses


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """K continuations of each of B prompts.

    Attributes:
        ids: Tokens so far, `PAD` behind the end, (B, K, t), int64.
        sums: Of their log-probabilities, nats, (B, K).
        lengths: Tokens, the stopping one included, (B, K), int64.
        finished: Whether a stopping token came, (B, K), bool.
    """

    ids: Tensor
    sums: Tensor
    lengths: Tensor
    finished: Tensor

    @classmethod
    def empty(cls, batch: int, like: Tensor) -> Hypotheses:
        """Return one empty hypothesis per prompt, of a tensor's dtype and device."""
        device = like.device
        return cls(
            ids=torch.zeros(batch, 1, 0, dtype=torch.long, device=device),
            sums=torch.zeros(batch, 1, dtype=like.dtype, device=device),
            lengths=torch.zeros(batch, 1, dtype=torch.long, device=device),
            finished=torch.zeros(batch, 1, dtype=torch.bool, device=device),
        )

    @property
    def averages(self) -> Tensor:
        """Mean log-probability per token, (B, K)."""
        return self.sums / self.lengths

    def find_open(self) -> Tensor:
        """Return the places in (B * K,) of those that are not finished, int64."""
        return (~self.finished).flatten().nonzero()[:, 0]

    def best_first(self) -> Hypotheses:
        """Sort each prompt's by falling average."""
        order = self.averages.argsort(dim=1, descending=True, stable=True)
        ids = self.ids.gather(1, order[..., None].expand_as(self.ids))
        return Hypotheses(ids, *(part.gather(1, order) for part in (self.sums, self.lengths, self.finished)))


@torch.no_grad()
def beam_search(
    captioner: PrefixCaptioner, embeds: Tensor, *, width: int, max_new_tokens: int, stop_ids: Collection[int]
) -> Hypotheses:
    """Search until all hypotheses are finished, or have `max_new_tokens`.

    Args:
        captioner: In evaluation mode.
        embeds: Prompts of equal length, (B, L, d).
        width: K.
        max_new_tokens: Limit, the stopping token included.
        stop_ids: Tokens after which a hypothesis is finished.
    Returns:
        Best first; those that reached the limit are not finished.
    Raises:
        ValueError: If the width exceeds the vocabulary.
    """
    if width > captioner.vocabulary_size:
        raise ValueError(f"TRAINER.VIECAP.BEAM_WIDTH is {width}; expected at most the vocabulary's {captioner.vocabulary_size}")
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=embeds.device)
    cache = DynamicCache(config=captioner.language_model.config)
    scores = captioner.read(embeds, cache)
    found = Hypotheses.empty(len(embeds), scores)
    held = found.find_open()  # the cache's rows, as places in (B * K,)
    while True:
        found, parents = extend(found, held, scores.log_softmax(dim=-1), width, stops)
        going_on = found.find_open()
        if not len(going_on) or found.ids.shape[2] == max_new_tokens:
            return found.best_first()
        # `held` rises, and whatever goes on comes from something that did.
        cache.batch_select_indices(torch.searchsorted(held, parents[going_on]))
        scores = captioner.read(captioner.embed(found.ids[..., -1].flatten()[going_on])[:, None], cache)
        held = going_on


def extend(old: Hypotheses, held: Tensor, log_probs: Tensor, width: int, stops: Tensor) -> tuple[Hypotheses, Tensor]:
    """Take one step.

    Args:
        old: Hypotheses, (B, K).
        held: Places in (B * K,) of the A that are not finished, (A,).
        log_probs: Of their next token, (A, V), nats.
        width: Hypotheses per prompt afterwards.
        stops: Stopping tokens, (S,).
    Returns:
        The new hypotheses, (B, width), and the places in (B * K,) that they come from, (B * width,).
    """
    batch, n_old = old.sums.shape
    best, next_ids = log_probs.topk(width, dim=-1)  # more than `width` from one hypothesis cannot win
    sums = old.sums.flatten()[:, None].repeat(1, width)
    sums[held] += best
    ids = torch.full_like(sums, PAD, dtype=torch.long)
    ids[held] = next_ids
    lengths = (old.lengths + ~old.finished).flatten()
    averages = sums / lengths[:, None]
    averages[:, 1:].masked_fill_(old.finished.flatten()[:, None], -torch.inf)  # a finished one competes once, as it is
    chosen = averages.view(batch, -1).topk(width, dim=-1).indices
    chosen = (chosen + torch.arange(batch, device=chosen.device)[:, None] * n_old * width).flatten()
    parents, shape = chosen // width, (batch, width)
    new_ids = ids.flatten()[chosen]
    finished = old.finished.flatten()[parents] | torch.isin(new_ids, stops)
    return Hypotheses(
        ids=torch.cat([old.ids.flatten(0, 1)[parents], new_ids[:, None]], dim=1).view(*shape, -1),
        sums=sums.flatten()[chosen].view(shape),
        lengths=lengths[parents].view(shape),
        finished=finished.view(shape),
    ), parents

"""Greedy decoding, one sequence after its prefill or a left-padded batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prefill import PrefillState
from trainers.bgobj_llava.model.sequence import Segment


@dataclass(frozen=True)
class Decoded:
    """Generated ids without the end token; `truncated` if that did not come."""

    ids: list[int]
    truncated: bool


class GreedyDecoder:
    """Takes the most probable token until the end token or a limit.

    Args:
        model: See there.
        max_new_tokens: Limit, the end token included.
    """

    def __init__(self, model: BgObjLlava, max_new_tokens: int) -> None:
        self._model, self._limit = model, max_new_tokens
        self._suppressed = torch.tensor(model.suppressed_ids, dtype=torch.long, device=model.device)

    def choose(self, logits: Tensor) -> Tensor:
        """Return the best allowed ids, (B,), for scores (B, V)."""
        return logits.index_fill(-1, self._suppressed, -torch.inf).argmax(dim=-1)

    def follow(self, first_id: int, state: PrefillState, position: int) -> Decoded:
        """Decode one sequence on.

        Args:
            first_id: First token of the answer.
            state: After prefill; grows.
            position: Rotary position of the first token.
        """
        ids, eos_id = [first_id], self._model.info.eos_id
        while ids[-1] != eos_id and len(ids) < self._limit:
            segment = self._model.token_segment(torch.tensor([ids[-1]]), position + len(ids) - 1)
            hidden = self._model.prefill(segment, state)
            ids.append(int(self.choose(self._model.logits(hidden[-1:]))))
        return self.finish(ids)

    def finish(self, ids: Sequence[int]) -> Decoded:
        """Cut generated ids at the end token."""
        ids, eos_id = list(ids), self._model.info.eos_id
        if eos_id in ids:
            return Decoded(ids[: ids.index(eos_id)], False)
        return Decoded(ids, True)

    def read_batch(self, segments: Sequence[Segment]) -> BatchState:
        """Read several sequences at once, padded on the left.

        Args:
            segments: Whole sequences, all rows of which pass the fusion layers.
        """
        rows, state = pad_left(segments), self._model.new_state()
        hidden = self._model.run(rows.embeds, rows.positions, rows.mask, rows.mask, state)
        logits = self._model.logits(hidden[:, -1])
        return BatchState(state, logits, self.choose(logits), rows.positions[:, -1:], rows.mask)

    def follow_batch(self, read: BatchState) -> list[Decoded]:
        """Decode several sequences on until all have ended."""
        ids, positions, mask = read.first_ids[:, None], read.positions, read.mask
        finished = read.first_ids == self._model.info.eos_id
        while not finished.all() and ids.shape[1] < self._limit:
            mask, positions = torch.nn.functional.pad(mask, (0, 1), value=True), positions + 1
            embeds = self._model.token_segment(ids[:, -1], 0).embeds[:, None]
            hidden = self._model.run(embeds, positions, mask, torch.zeros_like(mask[:, :1]), read.state)
            ids = torch.cat([ids, self.choose(self._model.logits(hidden[:, -1]))[:, None]], dim=1)
            finished |= ids[:, -1] == self._model.info.eos_id
        return [self.finish(row) for row in ids.tolist()]


@dataclass(frozen=True, eq=False)
class BatchState:
    """Several sequences after prefill.

    Attributes:
        state: Keys and values; grows.
        logits: Scores of the first tokens, (B, V).
        first_ids: (B,), int64.
        positions: Rotary positions of the last rows, (B, 1), int64.
        mask: Real rows, (B, L), bool.
    """

    state: PrefillState
    logits: Tensor
    first_ids: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True)
class LeftPadded:
    """Rows of several sequences that end together: embeds (B, L, d), positions (B, L), mask of real rows (B, L)."""

    embeds: Tensor
    positions: Tensor
    mask: Tensor


def pad_left(segments: Sequence[Segment]) -> LeftPadded:
    """Collate sequences with their ends aligned."""

    def pad(name: str) -> Tensor:
        rows = [getattr(segment, name) for segment in segments]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")

    lengths = torch.tensor([len(segment) for segment in segments])
    longest = int(lengths.max())
    mask = torch.arange(longest) >= (longest - lengths)[:, None]
    return LeftPadded(pad("embeds"), pad("positions"), mask.to(segments[0].embeds.device))

"""What is learned from, as token ids: captions cut to a longest length, and the hard prompt that each gets in an epoch."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.viecap.caption_store.store import CaptionStore
from trainers.viecap.ragged import Ragged, gather, join_rows, offsets_of
from trainers.viecap.words.entity_table import EntityTable

__all__ = ["EpochText", "HardPrompts", "TrainingText", "choose_rows", "find_token_cap"]

Rows = NDArray[np.int64]


def choose_rows(count: int, *, ratio: float, seed: int) -> Rows:
    """Return the captions of a few-shot run, ascending: the first int(count * ratio) of a seeded permutation.

    Args:
        count: Captions there are.
        ratio: `FEW_SHOT_RATIO`, in (0, 1].
        seed: Of the run, 0 or more.
    """
    if ratio >= 1:
        return np.arange(count)
    kept = int(count * ratio + 1e-9)  # 0.29 * 100 is a little less than 29
    return np.sort(np.random.default_rng([seed]).permutation(count)[:kept])


def find_token_cap(lengths: NDArray[np.int64], setting: int) -> int:
    """Return the longest caption that is learned whole, in tokens.

    Args:
        lengths: Tokens of each caption, not empty.
        setting: `MAX_CAPTION_TOKENS`; 0: min(mean + 10 standard deviations, longest).
    """
    if setting:
        return setting
    deviation = lengths.std(ddof=1) if len(lengths) > 1 else 0.0
    return min(math.floor(lengths.mean() + 10 * deviation), int(lengths.max()))


class HardPrompts(NamedTuple):
    """How a run makes hard prompts.

    Attributes:
        table: Entities of the store's nouns, with the pieces of a prompt.
        max_entities: Nouns of a caption that are looked at.
        mask_probability: Of dropping an occurrence in an epoch; 0 = none.
        budget: Tokens of the longest prompt.
    """

    table: EntityTable
    max_entities: int
    mask_probability: float
    budget: int


class EpochText(NamedTuple):
    """Token ids of every caption in one epoch.

    Attributes:
        ids: Hard prompt and caption, end to end.
        n_hard: Tokens of the prompt, (N,), int64.
        n_caption: Tokens of the caption, (N,), int64.
    """

    ids: Ragged
    n_hard: NDArray[np.int64]
    n_caption: NDArray[np.int64]


class TrainingText:
    """Captions of a run and how their prompts are drawn.

    Attributes:
        rows: Captions of the store that are learned, (N,).
        captions: Their ids, cut, with the end token if one is learned.
        token_cap: Longest caption, tokens, without end token.
        n_cut: Captions that were longer.

    Args:
        store: Of the captions.
        rows: Which of them, ascending; None = all.
        prompts: None: no hard prompt.
        max_caption_tokens: `MAX_CAPTION_TOKENS`.
        eos_id: End token that whole captions get; None: none is learned.
    """

    def __init__(
        self,
        store: CaptionStore,
        rows: Rows | None,
        prompts: HardPrompts | None,
        *,
        max_caption_tokens: int = 0,
        eos_id: int | None = None,
    ) -> None:
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        lengths = store.lengths[self.rows]
        self.token_cap = find_token_cap(lengths, max_caption_tokens)
        self.n_cut = int((lengths > self.token_cap).sum())
        kept = np.minimum(lengths, self.token_cap)
        self.captions = gather(store.tokens.numpy(), store.token_offset.numpy()[self.rows], kept)
        if eos_id is not None:  # what was cut has no end to learn
            self.captions = join_rows(self.captions, _repeat(eos_id, lengths <= self.token_cap))
        self._prompts = prompts
        if prompts is not None:
            nouns = Ragged(store.nouns.numpy(), store.noun_offset.numpy()).take(self.rows)
            self._entities = prompts.table.entities(nouns.flat, nouns.offset, prompts.max_entities)
            self._left_out = prompts.table.left_out_share(nouns.flat, nouns.offset, prompts.max_entities)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def max_hard(self) -> int:
        """Tokens of the longest hard prompt that can be drawn."""
        return self._prompts.budget if self._prompts else 0

    def draw(self, generator: np.random.Generator) -> EpochText:
        """Return the ids of an epoch: masks and order of the entities of all captions at once."""
        lengths = self.captions.lengths
        if self._prompts is None:
            return EpochText(self.captions, np.zeros_like(lengths), lengths)
        table = self._prompts.table
        hard = table.join(table.draw(self._entities, generator, mask_probability=self._prompts.mask_probability))
        return EpochText(join_rows(hard, self.captions), hard.lengths, lengths)

    def report(self) -> list[str]:
        """Return what is worth knowing before training, a line each."""
        lengths = self.captions.lengths
        lines = [f"{len(self)} captions, {lengths.mean():.2f} tokens on average, at most {lengths.max()}; {self.n_cut} cut to "
                 f"{self.token_cap}"]  # fmt: skip
        if self._prompts is not None:
            table = self._prompts.table
            unmasked = table.draw(self._entities, np.random.default_rng(0), mask_probability=0.0)
            lines += [
                f"{int((self._entities.lengths == 0).sum())} captions without an effective entity; "
                f"{self._entities.lengths.mean():.2f} entities per caption",
                f"{int((~table.fits(unmasked)).sum())} entities exceed the prompt's budget (none masked)",
            ]
            if table.left_out:
                lines.append(
                    f"{100 * self._left_out:.2f} % of the entities' occurrences ({len(table.left_out)} names) cannot be joined "
                    f"to a prompt and are left out, first: {', '.join(table.left_out[:3])}"
                )
        return lines


def _repeat(value: int, where: NDArray[np.bool_]) -> Ragged:
    """Rows that hold the value, or nothing."""
    return Ragged(np.full(int(where.sum()), value, dtype=np.int32), offsets_of(where))

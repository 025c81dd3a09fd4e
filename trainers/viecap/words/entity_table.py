"""Entities and hard prompts of a whole corpus at once, in numpy: what `entities.py` and `prompts.py` do for one caption.

    table = EntityTable(store.noun_names, noun_map, prompts)  # once
    entities = table.entities(nouns, noun_offset, max_entities)  # once; .take(rows) chooses captions
    drawn = table.draw(entities, generator, mask_probability=0.4)  # each epoch
    ids = table.join(drawn)  # each epoch; those of caption i: ids.flat[ids.offset[i] : ids.offset[i + 1]]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers.viecap.ragged import Ragged, from_rows, gather
from trainers.viecap.words.entities import NounMap
from trainers.viecap.words.prompts import PromptBuilder

__all__ = ["EntityTable"]

_FIRST, _LAST, _NOTHING, _ENTITIES = 0, 1, 2, 3  # rows of a table of pieces; from _ENTITIES on two for each entity


class EntityTable:
    """The entities that nouns count as, and their pieces of a prompt.

    Attributes:
        names: The entities, in the order of their first noun.
        entity: Noun id -> entity id (a place in `names`), or -1 if it is dropped; (V,), int32.
        left_out: Entities that pass the filter but cannot be joined to a prompt (see `PromptBuilder.is_joinable`); their
            nouns are dropped. Empty without `prompts`.
    """

    def __init__(self, noun_names: Sequence[str], noun_map: NounMap, prompts: PromptBuilder | None = None) -> None:
        """Map every noun once.

        Args:
            noun_names: V nouns; a noun's id is its place.
            noun_map: The filter.
            prompts: Makes `join` possible; None for a run without hard prompt.
        """
        mapped = [noun_map.map(noun) for noun in noun_names]
        names = list(dict.fromkeys(name for name in mapped if name is not None))
        self.left_out: tuple[str, ...] = ()
        if prompts is not None:
            prompts.prepare(names)
            self.left_out = tuple(name for name in names if not prompts.is_joinable(name))
            names = [name for name in names if prompts.is_joinable(name)]
        numbers = {name: number for number, name in enumerate(names)}
        self.names = tuple(names)
        self.entity = np.array([-1 if name is None else numbers.get(name, -1) for name in mapped], dtype=np.int32)
        self._left_out_nouns = np.isin(np.array(mapped, dtype=object).astype(str), self.left_out)
        self._prompts = prompts
        self._pieces = None if prompts is None else _pieces_of(names, prompts)

    def entities(self, nouns: np.ndarray, offset: np.ndarray, max_entities: int) -> Ragged:
        """Return the entities of each caption's first nouns, in text order, duplicates included.

        The same as `entities.effective_entities` for every caption.

        Args:
            nouns: Noun ids in text order, (M,).
            offset: Where captions begin, (N + 1,).
            max_entities: Nouns of a caption that are looked at, before the filter; 1 or more.
        """
        first = self._first(nouns, offset, max_entities)
        found = Ragged(self.entity[first.flat], first.offset)
        return found.where(found.flat >= 0)

    def left_out_share(self, nouns: np.ndarray, offset: np.ndarray, max_entities: int) -> float:
        """Return the share of the filtered entities' occurrences that is left out because it cannot be joined; [0, 1]."""
        first = self._first(nouns, offset, max_entities)
        left_out = int(self._left_out_nouns[first.flat].sum())
        kept = int((self.entity[first.flat] >= 0).sum())
        return left_out / (left_out + kept) if left_out else 0.0

    def draw(self, entities: Ragged, generator: np.random.Generator, *, mask_probability: float) -> Ragged:
        """Mask, merge and shuffle the entities of every caption.

        Args:
            entities: From `entities`.
            generator: The draws depend on its state and on `entities` alone, also when nothing is masked.
            mask_probability: Of dropping an occurrence, before duplicates merge; 0 (RANDOM_MASK False) keeps all.
        """
        if mask_probability > 0:
            entities = entities.where(generator.random(len(entities.flat)) >= mask_probability)
        width = max(len(self.names), 1)
        keys = np.sort(entities.row * width + entities.flat, kind="stable")  # np.unique would hash, 20 times slower
        row, entity = np.divmod(keys[np.diff(keys, prepend=-1) > 0], width)
        # The row in the upper half keeps rows apart, whatever is drawn for the lower one.
        order = (row << 32) | generator.integers(0, 1 << 32, size=len(row), dtype=np.int64)
        return from_rows(entity[np.argsort(order, kind="stable")], row, len(entities.offset) - 1)

    def join(self, entities: Ragged) -> Ragged:
        """Return the token ids of each caption's hard prompt; trailing entities go until the budget is met.

        The same as `PromptBuilder.join` for every caption.

        Args:
            entities: Entity ids in the order of the prompt, without duplicates.
        Raises:
            ValueError: If the table was made without `prompts`.
        """
        fits = self.fits(entities)
        if not fits.all():
            entities = entities.where(fits)
        lengths, row = entities.lengths, entities.row
        parts = np.concatenate([[0], np.cumsum(np.maximum(lengths, 1) + 2)])
        segments = np.full(parts[-1], _NOTHING, dtype=np.int64)
        segments[parts[:-1]], segments[parts[1:] - 1] = _FIRST, _LAST
        place = np.arange(len(row)) - entities.offset[row]
        segments[parts[row] + 1 + place] = _ENTITIES + 2 * entities.flat.astype(np.int64) + (place > 0)
        pieces = self._require_pieces()
        ids = pieces.take(segments)
        return Ragged(ids.flat, ids.offset[parts])

    def fits(self, entities: Ragged) -> np.ndarray:
        """Return which entities the prompt's budget leaves room for, (M,), bool."""
        pieces, prompts = self._require_pieces(), self._prompts
        if not len(entities.flat):
            return np.ones(0, dtype=bool)
        later = pieces.lengths[_ENTITIES + 1 :: 2][entities.flat]  # with the comma before it
        used = np.concatenate([[0], np.cumsum(later)])
        own = len(prompts.first_ids) + len(prompts.last_ids) - len(prompts.comma_ids)  # the first one has no comma
        return own + used[1:] - used[entities.offset[entities.row]] <= prompts.budget

    def _first(self, nouns: np.ndarray, offset: np.ndarray, max_entities: int) -> Ragged:
        nouns, offset = np.asarray(nouns), np.asarray(offset)
        return gather(nouns, offset[:-1], np.minimum(np.diff(offset), max_entities))

    def _require_pieces(self) -> Ragged:
        if self._pieces is None:
            raise ValueError("this EntityTable was made without a PromptBuilder; it has no prompts to join")
        return self._pieces


def _pieces_of(names: Sequence[str], prompts: PromptBuilder) -> Ragged:
    """Lay out the pieces of prompts: beginning, end, "something", then each entity without and with a comma before it."""
    pieces = [prompts.first_ids, prompts.last_ids, prompts.nothing_ids]
    for name in names:
        ids = prompts.entity_ids(name)
        pieces += [ids, [*prompts.comma_ids, *ids]]
    lengths = [len(piece) for piece in pieces]
    flat = np.array([number for piece in pieces for number in piece], dtype=np.int32)
    return Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]))

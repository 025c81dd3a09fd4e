"""A whole corpus at once gives what its captions give one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from prompt_tokenizers import LONG_NAMES, glueing_tokenizer, letter_tokenizer
from tiny_gpt2s import tiny_tokenizer

from trainers.viecap.ragged import Ragged
from trainers.viecap.words.entities import PERSON, NounMap, effective_entities
from trainers.viecap.words.entity_table import EntityTable
from trainers.viecap.words.prompts import PromptBuilder

NOUNS = ("man", "dog", "xyzzy", "photo", "woman", "park", "digit eight", "boy", "red circle")
WORDS = frozenset(NOUNS) - {"xyzzy"}


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    flat = np.array([number for row in rows for number in row], dtype=np.int32)
    return Ragged(flat, np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]))


def rows_of(table: EntityTable, entities: Ragged) -> list[list[str]]:
    return [[table.names[number] for number in row] for row in np.split(entities.flat, entities.offset[1:-1])]


@pytest.fixture(scope="module")
def prompts() -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer(), 10, 5)


@pytest.fixture(scope="module")
def table(prompts: PromptBuilder) -> EntityTable:
    return EntityTable(NOUNS, NounMap(WORDS), prompts)


@pytest.fixture(scope="module")
def corpus() -> Ragged:
    generator = np.random.default_rng(1)
    return ragged([generator.integers(0, len(NOUNS), size=size).tolist() for size in generator.integers(0, 9, size=400)])


def test_nouns_have_the_number_of_their_entity_or_minus_one(table: EntityTable) -> None:
    assert table.names == (PERSON, "dog", "park", "digit eight", "red circle")
    assert table.entity.tolist() == [0, 1, -1, -1, 0, 2, 3, 0, 4] and table.entity.dtype == np.int32
    assert table.left_out == ()


@pytest.mark.parametrize("max_entities", [1, 3, 10])
def test_entities_are_those_of_each_caption(table: EntityTable, corpus: Ragged, max_entities: int) -> None:
    found = table.entities(corpus.flat, corpus.offset, max_entities)
    captions = [[NOUNS[number] for number in row] for row in np.split(corpus.flat, corpus.offset[1:-1])]
    assert rows_of(table, found) == [effective_entities(nouns, NounMap(WORDS), max_entities) for nouns in captions]
    assert found.offset.dtype == np.int64 and len(found.offset) == 401


def test_without_a_mask_duplicates_merge_and_the_order_is_shuffled(table: EntityTable, corpus: Ragged) -> None:
    found = table.entities(corpus.flat, corpus.offset, 10)
    drawn = table.draw(found, np.random.default_rng(0), mask_probability=0.0)
    before, after = rows_of(table, found), rows_of(table, drawn)
    assert [sorted(set(row)) for row in before] == [sorted(row) for row in after]
    # Each of two entities comes first in half of the captions that have just these two.
    pair = table.draw(ragged([[1, 2]] * 4000), np.random.default_rng(0), mask_probability=0.0)
    assert np.mean(pair.flat[::2] == 1) == pytest.approx(0.5, abs=0.03)


def test_person_of_two_nouns_survives_with_one_minus_p_squared(table: EntityTable) -> None:
    drawn = table.draw(ragged([[0, 1, 0, 2]] * 20_000), np.random.default_rng(0), mask_probability=0.4)
    share = np.bincount(drawn.flat, minlength=3) / 20_000
    assert share[0] == pytest.approx(0.84, abs=0.01)
    assert share[1:3] == pytest.approx([0.6, 0.6], abs=0.012)
    assert all(len(set(row)) == len(row) for row in rows_of(table, drawn))


def test_draws_depend_on_the_generator_alone(table: EntityTable, corpus: Ragged) -> None:
    found = table.entities(corpus.flat, corpus.offset, 10)
    generators = (np.random.default_rng([3, epoch]) for epoch in (0, 0, 1))
    first, again, other = (table.draw(found, generator, mask_probability=0.4) for generator in generators)
    assert np.array_equal(first.flat, again.flat) and np.array_equal(first.offset, again.offset)
    assert not np.array_equal(first.offset, other.offset)


def test_everything_masked_leaves_something(table: EntityTable, corpus: Ragged, prompts: PromptBuilder) -> None:
    found = table.entities(corpus.flat, corpus.offset, 10)
    drawn = table.draw(found, np.random.default_rng(0), mask_probability=1.0)
    joined = table.join(drawn)
    assert len(drawn.flat) == 0
    assert [row.tolist() for row in np.split(joined.flat, joined.offset[1:-1])] == [prompts.encode([])] * 400


def test_joined_prompts_are_those_of_each_caption(table: EntityTable, corpus: Ragged, prompts: PromptBuilder) -> None:
    found = table.entities(corpus.flat, corpus.offset, 10)
    drawn = table.draw(found, np.random.default_rng(0), mask_probability=0.4)
    joined = table.join(drawn)
    assert joined.flat.dtype == np.int32 and joined.offset[-1] == len(joined.flat)
    for ids, names in zip(np.split(joined.flat, joined.offset[1:-1]), rows_of(table, drawn), strict=True):
        assert ids.tolist() == prompts.encode(names)


def test_trailing_entities_go_until_the_budget_is_met() -> None:
    prompts = PromptBuilder(letter_tokenizer(), 10, 5)
    table = EntityTable(LONG_NAMES, NounMap(None), prompts)
    rows = ragged([range(10), [4], [], [9, 8, 7, 6]])
    joined = table.join(rows)
    assert table.fits(rows).tolist() == [True] * 3 + [False] * 7 + [True] + [True] * 3 + [False]
    expected = [prompts.encode(names) for names in rows_of(table, rows)]
    assert [row.tolist() for row in np.split(joined.flat, joined.offset[1:-1])] == expected
    assert [len(row) for row in expected] == [22, 10, len(prompts.encode([])), 22]


def test_entities_that_cannot_be_joined_are_left_out_and_their_share_is_told() -> None:
    nouns = ("noon", "a.m.", "xyzzy", "p.m.")
    noun_map = NounMap(frozenset({"noon", "a.m.", "p.m."}))
    table = EntityTable(nouns, noun_map, PromptBuilder(glueing_tokenizer(), 10, 5))
    assert table.names == ("noon",) and table.left_out == ("a.m.", "p.m.")
    assert table.entity.tolist() == [0, -1, -1, -1]
    corpus = ragged([[0, 1, 2], [0, 3], [0], [2, 1]])
    assert table.left_out_share(corpus.flat, corpus.offset, 10) == pytest.approx(3 / 6)
    assert table.left_out_share(corpus.flat, corpus.offset, 1) == 0
    # A run without hard prompt needs no pieces.
    assert EntityTable(nouns, noun_map).names == ("noon", "a.m.", "p.m.")
    with pytest.raises(ValueError, match="made without a PromptBuilder"):
        EntityTable(nouns, noun_map).join(ragged([[0]]))


def test_no_noun_and_no_entity_at_all(prompts: PromptBuilder) -> None:
    table = EntityTable((), NounMap(frozenset()), prompts)
    empty = table.entities(np.zeros(0, np.int32), np.zeros(3, np.int64), 10)
    joined = table.join(table.draw(empty, np.random.default_rng(0), mask_probability=0.4))
    assert table.names == () and joined.lengths.tolist() == [len(prompts.encode([]))] * 2
    assert table.left_out_share(np.zeros(0, np.int32), np.zeros(3, np.int64), 10) == 0


def test_rows_are_taken_in_the_order_asked_for(corpus: Ragged) -> None:
    taken = corpus.take(np.array([7, 0, 7]))
    rows = np.split(corpus.flat, corpus.offset[1:-1])
    assert [row.tolist() for row in np.split(taken.flat, taken.offset[1:-1])] == [rows[k].tolist() for k in (7, 0, 7)]
    assert corpus.take(np.zeros(0, np.int64)).flat.size == 0

"""Hard prompts: whole sentences and joined pieces give the same ids, within the budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from prompt_tokenizers import LONG_NAMES, REAL, glueing_tokenizer, gpt2_tokenizer, letter_tokenizer
from tiny_gpt2s import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.words.vocabularies import read_vocabulary

ODD = ["7", "3d", "o'clock", "a.m.", "st.", '"stop"', "50%", "dog/cat", "t-shirt", "cat)", "café", "rock 'n' roll", "x,", "d'"]
TOKENIZERS = [tiny_tokenizer, letter_tokenizer, glueing_tokenizer, pytest.param(gpt2_tokenizer, marks=REAL)]


def make(tokenizer: PreTrainedTokenizerBase, max_entities: int = 10, template_length: int = 5) -> PromptBuilder:
    return PromptBuilder(tokenizer, max_entities, template_length)


@pytest.mark.weights
def test_ids_of_gpt2_are_the_documented_ones() -> None:
    prompts = make(gpt2_tokenizer())
    assert prompts.budget == 24 and prompts.first_ids == [1858, 389] and prompts.comma_ids == [11]
    assert prompts.last_ids == [287, 2939, 13] and prompts.nothing_ids == [1223]
    golden = [1858, 389, 1048, 11, 3290, 11, 3952, 287, 2939, 13]
    assert prompts.join(["person", "dog", "park"]) == prompts.encode(["person", "dog", "park"]) == golden
    assert prompts.join([]) == prompts.encode([]) == [1858, 389, 1223, 287, 2939, 13]
    assert [name for name in ("a.m.", "st.", '"stop"', "cat)", "o'clock", "7") if prompts.is_joinable(name)] == ["o'clock", "7"]


def test_sentences_read_as_documented() -> None:
    prompts = make(tiny_tokenizer())
    assert prompts.sentence(["person", "dog"]) == "There are person, dog in image."
    assert prompts.sentence([]) == "There are something in image."


def test_parts_of_the_template_are_what_the_tokenizer_makes_of_them() -> None:
    tokenizer, prompts = tiny_tokenizer(), make(tiny_tokenizer())
    parts = prompts.first_ids, prompts.nothing_ids, prompts.comma_ids, prompts.nothing_ids, prompts.last_ids
    assert [tokenizer.decode(part) for part in parts] == ["There are", " something", ",", " something", " in image."]
    assert tokenizer.decode(prompts.entity_ids("digit eight")) == " digit eight"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_joined_ids_are_those_of_the_whole_sentence(tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
    prompts, generator = make(tokenizer()), np.random.default_rng(0)
    letters = ["".join(map(chr, row)) for row in generator.integers(ord("a"), ord("z") + 1, size=(500, 6))]
    names = [*read_vocabulary("coco_entities"), *read_vocabulary("mini_scenes"), *letters, *ODD]
    prompts.prepare(names)
    left_out = {name for name in names if not prompts.is_joinable(name)}
    assert left_out <= set(ODD)  # letters and blanks never depend on their neighbours
    names = [name for name in names if name not in left_out]
    for count in generator.integers(0, 11, size=2000):
        chosen = [names[place] for place in generator.integers(0, len(names), size=count)]
        ids = prompts.join(chosen)
        assert ids == prompts.encode(chosen) and len(ids) <= prompts.budget


def test_names_whose_ids_depend_on_their_neighbours_are_found_and_refused() -> None:
    prompts = make(glueing_tokenizer())
    assert not prompts.is_joinable("a.m.") and prompts.is_joinable("noon") and prompts.is_joinable("7")
    with pytest.raises(ValueError, match=r"'a.m.' depend on its neighbours"):
        prompts.join(["noon", "a.m."])
    ids = prompts.encode(["a.m.", "noon"])  # whole sentences have no such trouble
    assert glueing_tokenizer().decode(ids) == "There are a.m., noon in image."


def test_ten_names_of_five_tokens_keep_the_first_ones_that_fit() -> None:
    prompts = make(letter_tokenizer())
    assert [len(prompts.entity_ids(name)) for name in LONG_NAMES] == [5] * 10
    # 5 of the template, 5 of the first name, 6 of each further one with its comma: 5 + 5 + 6 + 6 = 22.
    expected = prompts.encode(LONG_NAMES[:3])
    assert prompts.join(LONG_NAMES) == prompts.encode(LONG_NAMES) == expected and len(expected) == 22 <= prompts.budget == 24


def test_a_single_name_beyond_the_budget_leaves_something() -> None:
    prompts = make(letter_tokenizer(), max_entities=1)
    assert prompts.budget == 6 and prompts.join(["bcdf", "b"]) == prompts.encode(["bcdf", "b"]) == prompts.encode([])


def test_a_template_longer_than_allowed_is_refused() -> None:
    own = len(make(tiny_tokenizer()).first_ids + make(tiny_tokenizer()).last_ids)
    with pytest.raises(ValueError, match=f"PROMPT_TEMPLATE_LENGTH is {own - 1}; expected {own} or more"):
        make(tiny_tokenizer(), template_length=own - 1)


def test_a_budget_without_room_for_something_is_refused() -> None:
    glued = glueing_tokenizer()
    own = len(glued("There are")["input_ids"]) + len(glued(" in image.")["input_ids"])
    needed = len(glued("There are something in image.")["input_ids"])
    assert own + 1 < needed
    with pytest.raises(ValueError, match=f"allow {own + 1} tokens; .* needs {needed}"):
        make(glued, max_entities=1, template_length=own)


def test_a_tokenizer_that_melts_words_is_refused() -> None:
    class Melting:
        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[hash(text) % 999] for text in texts]}

    with pytest.raises(ValueError, match=r"USING_HARD_PROMPT: this tokenizer \(Melting\) does not keep the words"):
        make(Melting())

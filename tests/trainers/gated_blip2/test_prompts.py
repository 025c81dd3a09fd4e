"""Questions and answers as ids: one tokenisation for training and generation, and padding on either side."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest
import torch
from gated_models import TEMPLATE, encoder, texts
from tiny_blip2s import word_tokenizer

from trainers.gated_blip2 import image_view, prompts
from trainers.gated_blip2.prompts import IGNORED, PromptEncoder, collate, find_stop_id, problems_with_template

BOS = 1


def words(ids: list[int]) -> str:
    return " ".join(word_tokenizer().convert_ids_to_tokens(ids))


def test_row_is_start_prompt_answer_newline() -> None:
    row = encoder().encode("What  colour is\nhers?", " one  two ")
    assert row.prompt[0] == BOS
    assert words(row.prompt[1:]) == "question : what colour is <unk> ? short answer :"
    assert words(row.answer) == "one two \n"
    assert words(row.question) == "what colour is <unk> ?" and not row.cut


def test_prompt_is_the_same_with_and_without_an_answer() -> None:
    assert encoder().encode("who painted it?").prompt == encoder().encode("who painted it?", "one").prompt
    assert encoder().encode("who painted it?").answer == []


def test_prompt_is_that_of_one_tokenisation() -> None:
    tokenizer = word_tokenizer()
    joint = tokenizer.encode(TEMPLATE.replace("{question}", "who painted it?"))
    assert encoder().encode("who painted it?").prompt == joint


class Letters:
    """A tokenizer to which spaces matter, as they do to byte-pair ones; without a token for padding."""

    bos_token_id, pad_token_id, unk_token_id = BOS, None, None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_spaces_stand_where_one_sentence_has_them() -> None:
    own = PromptEncoder(Letters(), TEMPLATE, max_question_tokens=40, max_positions=128, n_queries=4)
    row = own.encode(" who\tpainted  it? ", " one\n two ")
    said = ["".join(map(chr, ids)) for ids in (row.prompt[1:], row.question, row.answer)]
    assert said == ["Question: who painted it? Short answer:", " who painted it?", " one two\n"]


def test_newline_counts_where_it_is_also_the_padding() -> None:
    own = PromptEncoder(Letters(), TEMPLATE, max_question_tokens=40, max_positions=128, n_queries=4)
    rows = [own.encode("who?", answer) for answer in ("one", "one two")]
    assert own.pad_id == own.stop_id
    found = collate(rows, pad_id=own.pad_id)
    assert found.mask.sum(dim=1).tolist() == [len(row.prompt) + len(row.answer) for row in rows]
    assert found.labels.ne(IGNORED).sum(dim=1).tolist() == [len(row.answer) for row in rows]


def test_long_question_is_cut_and_its_answer_is_not() -> None:
    row = encoder(max_question_tokens=3).encode("which style is the picture of a thing?", "one two three one two three")
    assert row.cut and words(row.question) == "which style is"
    assert words(row.prompt[1:]) == "question : which style is short answer :"
    assert len(row.answer) == 7
    assert not encoder(max_question_tokens=3).encode("which style is").cut


@pytest.mark.parametrize(("question", "answer", "said"), [("  \n", "red", "question is"), ("who?", " ", "answer to 'who")])
def test_empty_text_is_an_error(question: str, answer: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoder().encode(question, answer)


def test_row_beyond_the_positions_is_an_error_that_names_it() -> None:
    small = encoder(max_positions=14)
    assert len(small.encode("who?", "red").prompt) == 8  # with 4 queries, answer and newline: 14
    with pytest.raises(ValueError, match=r"'who\?' takes 15 positions \(4 queries, 8 tokens of prompt, 3 of answer\).* has 14"):
        small.encode("who?", "red blue")


def test_longest_prompt_bounds_every_prompt() -> None:
    own = encoder(max_question_tokens=5)
    assert own.n_queries + len(own.encode("a " * 50).prompt) == own.longest_prompt


@pytest.mark.parametrize("template", ["Question: Short answer:", "{question} {question}"])
def test_template_needs_the_question_once(template: str) -> None:
    assert problems_with_template(TEMPLATE) == []
    assert "TRAINER.GATEDBLIP2.PROMPT.TEMPLATE" in problems_with_template(template)[0]
    with pytest.raises(ValueError, match="expected once"):
        PromptEncoder(word_tokenizer(), template, max_question_tokens=4, max_positions=64, n_queries=4)


def test_template_may_end_with_the_question() -> None:
    own = PromptEncoder(word_tokenizer(), "{question}", max_question_tokens=4, max_positions=64, n_queries=4)
    assert words(own.encode("who?").prompt) == "<s> who ?"


def test_tokenizer_without_newline_is_refused() -> None:
    class Spaces:
        unk_token_id = 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0]

    with pytest.raises(ValueError, match="expected one token of its own"):
        find_stop_id(Spaces())


def test_right_padding_of_training() -> None:
    own = encoder()
    batch = collate([own.encode("who?", "red"), own.encode("what is it?", "one two")], pad_id=own.pad_id)
    first = own.encode("who?", "red")
    length = len(first.prompt) + 2
    assert batch.ids[0, :length].tolist() == first.prompt + first.answer
    assert batch.ids[0, length:].tolist() == [own.pad_id] * (batch.ids.shape[1] - length)
    assert batch.mask[0].tolist() == [True] * length + [False] * (batch.ids.shape[1] - length)
    assert batch.labels[0].tolist() == (
        [IGNORED] * len(first.prompt) + first.answer + [IGNORED] * (batch.ids.shape[1] - length)
    )
    assert batch.n_answer_tokens == 5 == int((batch.labels != IGNORED).sum())


def test_left_padding_holds_the_same_rows() -> None:
    right, left = texts(), texts(side="left")
    assert bool(left.mask[:, -1].all()) and not bool(right.mask[:, -1].all())
    for row in range(len(right)):
        for name in ("ids", "labels"):
            assert getattr(right, name)[row][right.mask[row]].equal(getattr(left, name)[row][left.mask[row]])
    assert right.question_ids.equal(left.question_ids) and right.question_mask.equal(left.question_mask)


def test_batch_without_rows_or_of_an_unknown_side_is_refused() -> None:
    for rows, side in (([], "right"), ([encoder().encode("who?")], "middle")):
        with pytest.raises(ValueError, match="expected rows, and left or right"):
            collate(rows, pad_id=0, side=side)


def test_batch_moves_as_a_whole() -> None:
    moved = texts().to("meta")
    tensors = (moved.ids, moved.mask, moved.labels, moved.question_ids, moved.question_mask)
    assert all(tensor.device == torch.device("meta") for tensor in tensors) and moved.n_answer_tokens == texts().n_answer_tokens


@pytest.mark.parametrize("module", [prompts, image_view])
def test_importing_needs_no_transformers(module: ModuleType) -> None:
    statements = ast.parse(inspect.getsource(module)).body
    imported = [statement.module for statement in statements if isinstance(statement, ast.ImportFrom)]
    assert "torch" in imported or "PIL" in imported
    assert "transformers" not in imported

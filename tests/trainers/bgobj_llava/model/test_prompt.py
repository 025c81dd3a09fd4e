"""Conversation text, token ids and the labels of answers."""

from __future__ import annotations

import pytest
import torch
from tiny_llavas import TEXTS, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from trainers.bgobj_llava.model.prompt import IGNORED, PromptEncoder, PromptError, PromptTemplate
from trainers.bgobj_llava.model.separators import add_separators
from trainers.bgobj_llava.word_tokenizer import build_word_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)
GOLDEN = f"{SYSTEM} USER: <image>\nwhere is it?\nAnswer the question using a single word or phrase. ASSISTANT:"


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer())


def decode(encoder: PromptEncoder, ids: torch.Tensor) -> str:
    return encoder.tokenizer.decode(ids[ids != IGNORED]).replace(" </s>", "</s>")


def test_prompt_is_llavas() -> None:
    template = PromptTemplate()
    assert template.write([("where is it?", None)]) == (GOLDEN, [])
    text, spans = template.write([("where is it?", "left")])
    assert text == f"{GOLDEN} left</s>"
    assert [text[first:last] for first, last in spans] == [" left</s>"]


def test_second_turn_follows_the_end_token_at_once() -> None:
    text, spans = PromptTemplate().write([("where is it?", "left"), ("how many?", "two")])
    assert text == f"{GOLDEN} left</s>USER: how many? ASSISTANT: two</s>"
    assert [text[first:last] for first, last in spans] == [" left</s>", " two</s>"]


def test_image_comes_first_wherever_the_source_has_it() -> None:
    for question in ("where is it?\n<image>", "<image>\nwhere is it?", "where is it?"):
        assert PromptTemplate().write([(question, None)])[0] == GOLDEN


def test_instruction_may_be_empty() -> None:
    assert PromptTemplate(instruction="").write([("why?", None)])[0] == f"{SYSTEM} USER: <image>\nwhy? ASSISTANT:"


def test_ids_are_those_of_the_whole_text_cut_at_the_image(encoder) -> None:
    text = encoder.encode([("where is it?", "left")])
    image = encoder.tokenizer.convert_tokens_to_ids("<image>")
    whole = encoder.tokenizer(f"{GOLDEN} left</s>")["input_ids"]
    assert [*text.prefix.tolist(), image, *text.rest.tolist()] == whole
    assert text.prefix[0] == encoder.tokenizer.bos_token_id


def test_labels_are_the_answers_and_their_end_tokens(encoder) -> None:
    text = encoder.encode([("where is it?", "red square"), ("how many?", "two")])
    assert decode(encoder, text.labels) == "red square</s> two</s>"
    assert decode(encoder, text.rest[text.first_answer : text.first_answer + 2]) == "red square"
    assert (text.labels[: text.first_answer] == IGNORED).all()
    assert torch.equal(text.labels[text.labels != IGNORED], text.rest[text.labels != IGNORED])


@pytest.mark.parametrize("answer", ["left", "red square", "9"])
def test_ids_without_the_answer_are_a_prefix(encoder, answer) -> None:
    learned, asked = (encoder.encode([("what colour is it?", text)]) for text in (answer, None))
    assert torch.equal(learned.prefix, asked.prefix)
    assert torch.equal(learned.rest[: len(asked.rest)], asked.rest)
    assert learned.first_answer == asked.first_answer == len(asked.rest)
    assert (asked.labels == IGNORED).all()


def test_history_at_inference_has_its_first_answer(encoder) -> None:
    text = encoder.encode([("where is it?", "left"), ("how many?", None)])
    learned = encoder.encode([("where is it?", "left"), ("how many?", "two")])
    assert text.first_answer == learned.first_answer
    assert torch.equal(learned.rest[: len(text.rest)], text.rest)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "empty question"),
        ([("<image>\n ", "red")], "empty question"),
        ([("where?", " ")], "empty answer"),
        ([("where?", None), ("why?", "two")], "open turn"),
        ([("where </s> is it?", "left")], "reserved token"),
        ([("where is it?", "left <pad>")], "reserved token"),
    ],
)
def test_unusable_conversations_have_a_countable_reason(encoder, turns, reason) -> None:
    with pytest.raises(PromptError) as caught:
        encoder.encode(turns)
    assert caught.value.reason == reason


def test_separators_are_reserved_too() -> None:
    tokenizer, _ = add_separators(tiny_tokenizer(), "pairs", 200)
    with pytest.raises(PromptError, match="<bg_start>"):
        PromptEncoder(tokenizer).encode([("what is <bg_start>?", "red")])


class MergingTokenizer:
    """Joins the prompt's last character with the answer, as some subword tokenizers would."""

    def __init__(self) -> None:
        self._tokenizer = tiny_tokenizer()

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options):
        encoded = self._tokenizer(text, **options)
        if "offset_mapping" in encoded and "left" in text:
            offsets = encoded["offset_mapping"]
            place = next(i for i, (first, last) in enumerate(offsets) if text[first:last] == "left")
            offsets[place] = (offsets[place][0] - 2, offsets[place][1])
        return encoded


class ForgetfulTokenizer(MergingTokenizer):
    """Gives a prompt other ids when an answer follows."""

    def __call__(self, text: str, **options):
        encoded = self._tokenizer(text, **options)
        if text.endswith("ASSISTANT:"):
            encoded["input_ids"][-2] += 1
        return encoded


@pytest.mark.parametrize("kind", [MergingTokenizer, ForgetfulTokenizer])
def test_answers_that_cannot_be_told_apart_are_refused(kind) -> None:
    with pytest.raises(PromptError) as caught:
        PromptEncoder(kind()).encode([("where is it?", "left")])
    assert caught.value.reason == "offset failure"


def subword_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces as in Llama's tokenizer: the space belongs to the word after it, every digit is a piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=list("0123456789▁"))
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **names)


@pytest.mark.parametrize("answers", [("red",), ("12 circles", "left"), ("9",)])
def test_answers_of_subword_tokens_begin_with_their_space(answers) -> None:
    encoder = PromptEncoder(subword_tokenizer())
    talk = [("where is it?", answer) for answer in answers]
    text, asked = encoder.encode(talk), encoder.encode([("where is it?", None)])
    learned = encoder.tokenizer.convert_ids_to_tokens(text.labels[text.labels != IGNORED].tolist())
    assert "".join(learned) == "".join(f" {answer}</s>" for answer in answers).replace(" ", "▁")
    assert torch.equal(text.rest[: len(asked.rest)], asked.rest) and text.first_answer == len(asked.rest)


def test_tokenizer_without_image_token_is_refused() -> None:
    tokenizer = build_word_tokenizer(["where is it"])
    with pytest.raises(ValueError, match="no token '<picture>'"):
        PromptEncoder(tokenizer, PromptTemplate(image="<picture>"))

"""Generated answers: where they end, what they were worth, and how long they can get."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gated_models import ASKED, encoder, gated_model, pixels, stock_inputs, styles, talkative, texts, wrap
from tiny_blip2s import random_blip2

from trainers.gated_blip2.generation import Generated, GenerateOptions
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.prompts import collate

SEED = 4  # its answers differ from picture to picture and from word to word
BLUE = 10  # comes early in them


def answers(options: GenerateOptions, *, stop_id: int | None = None, attn: str = "eager") -> list[Generated]:
    loaded = wrap(talkative(random_blip2(seed=SEED, attn=attn)))
    if stop_id is not None:
        loaded = dataclasses.replace(loaded, stop_id=stop_id)
    model = GatedBlip2Model(loaded)
    return model.generate(model.encode_images(pixels()), None, texts(answers=False, side="left"), options)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_those_of_transformers(attn: str, num_beams: int) -> None:
    blip2, text = talkative(random_blip2(seed=SEED, attn=attn)), texts(answers=False, side="left")
    stock = blip2.generate(
        **stock_inputs(blip2, text), do_sample=False, num_beams=num_beams, max_new_tokens=12, eos_token_id=BLUE, pad_token_id=0
    )[:, 4 + text.ids.shape[1] :]
    own = answers(GenerateOptions(num_beams, 12), stop_id=BLUE, attn=attn)
    assert len({answer.ids for answer in own}) > 1
    for answer, row in zip(own, stock.tolist(), strict=True):
        whole = [*answer.ids, BLUE] if not answer.truncated else list(answer.ids)
        assert row[: len(whole)] == whole


def test_answer_ends_before_the_stop_token() -> None:
    free, stopped = answers(GenerateOptions(1, 12)), answers(GenerateOptions(1, 12), stop_id=BLUE)
    assert all(answer.truncated and len(answer.ids) == 12 for answer in free)
    ended = [(long, short) for long, short in zip(free, stopped, strict=True) if not short.truncated]
    assert ended
    for long, short in ended:
        assert BLUE not in short.ids and long.ids[: len(short.ids) + 1] == (*short.ids, BLUE)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_mean_log_probability_is_that_of_one_pass_over_the_answer(num_beams: int) -> None:
    model = GatedBlip2Model(dataclasses.replace(wrap(talkative(random_blip2(seed=SEED))), stop_id=BLUE))
    tokens, own = model.encode_images(pixels()), encoder()
    found = model.generate(tokens, None, texts(answers=False, side="left"), GenerateOptions(num_beams, 12))
    assert not all(answer.truncated for answer in found)
    for place, answer in enumerate(found):
        row = own.encode(ASKED[place][0])
        whole = [*answer.ids, *([] if answer.truncated else [BLUE])]
        text = collate([dataclasses.replace(row, answer=whole)], pad_id=own.pad_id)
        with torch.no_grad():
            loss = model.loss(tokens[place : place + 1], None, text)
        assert loss.n_tokens == len(whole)
        assert answer.mean_log_prob == pytest.approx(-float(loss.total) / len(whole), abs=1e-4)


def test_length_penalty_moves_beams() -> None:
    long, short = (answers(GenerateOptions(4, 12, penalty), stop_id=35) for penalty in (3.0, -3.0))
    assert sum(len(answer.ids) for answer in long) > sum(len(answer.ids) for answer in short)


def test_text_is_the_words_of_the_ids() -> None:
    loaded = wrap(talkative(random_blip2(seed=SEED)))
    for answer in answers(GenerateOptions(1, 5)):
        assert answer.text == loaded.tokenizer.decode(answer.ids).strip() != ""


def test_text_has_no_spaces_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-pair tokenizers write the space before a word into the word."""
    loaded = wrap(talkative(random_blip2(seed=SEED)))
    monkeypatch.setattr(loaded.tokenizer, "decode", lambda ids, **options: " starry night ")
    model = GatedBlip2Model(loaded)
    found = model.generate(model.encode_images(pixels()), None, texts(answers=False, side="left"), GenerateOptions(1, 3))
    assert {answer.text for answer in found} == {"starry night"}


def test_answer_that_could_outgrow_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GEN.MAX_NEW_TOKENS is 128, .* the language model has 128"):
        answers(GenerateOptions(1, 128))


@pytest.mark.parametrize("text", [texts(side="left"), texts(answers=False)])
def test_only_open_questions_padded_on_the_left_are_answered(text: object) -> None:
    model = gated_model("frozen")
    with pytest.raises(ValueError, match="side='left'"):
        model.generate(model.encode_images(pixels()), None, text)


def test_generation_leaves_the_mode_as_it_was_and_works_with_recomputed_layers() -> None:
    plain, recomputing = gated_model(stir=0.3, seed=SEED), gated_model(stir=0.3, seed=SEED, grad_ckpt=True).train()
    open_texts = texts(answers=False, side="left")
    first, second = (
        model.generate(model.encode_images(pixels()), styles(), open_texts, GenerateOptions(1, 8))
        for model in (plain, recomputing)
    )
    assert first == second
    assert recomputing.training and recomputing.blip2.language_model.training and not plain.training

"""The whole model: Hugging Face's own path, prefill in segments, losses, checkpointing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from split_models import (
    build_model,
    encode_talks,
    make_split,
    paint_objects,
    random_images,
    random_split,
    relative_error,
)

from trainers.bgobj_llava.generate import Generator
from trainers.bgobj_llava.geometry import PatchSplit
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import IGNORED, PromptEncoder
from trainers.bgobj_llava.model.scopes import prepare_trainables, trainable_parts
from trainers.bgobj_llava.model.sequence import SEPARATOR

ODD = {
    "projector": "separate", "cls": "none", "position": "raster", "sep_style": "single", "sep_init": "random",
    "fusion_layers": 2, "fusion_init": "random", "vit_train": "gather", "vit_eval": "mask",
}  # fmt: skip
VARIANTS = [
    {},
    {"position": "raster"},
    {"fusion_layers": 2, "fusion_init": "copy"},
    {"split": "order_only", "sep_style": "single"},
    {"split": "isolate_only"},
    {"position": "raster", "fusion_layers": 1, "fusion_init": "random", "sep_style": "none", "projector": "separate"},
]


@torch.no_grad()
def prefill_logits(model: BgObjLlava, images, splits, text) -> torch.Tensor:
    """Scores after each row, read in segments."""
    segments, state = model.build_segments(model.encode(images, splits, "gather")[0], text), model.new_state()
    return model.logits(torch.cat([model.prefill(segments.s0, state), model.prefill(segments.suffix, state)]))


# -- Hugging Face's own path ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_split_none_is_the_llava_itself_whatever_the_rest_says() -> None:
    model, plain = build_model(split="none", **ODD), build_model().llava
    assert model.separators is model.fusion is model.projector_bg is model.projector_obj is None
    own = {name for name, _ in model.named_parameters()}
    assert own == {f"llava.{name}" for name, _ in plain.named_parameters()}
    images, texts = random_images(model, 3), encode_talks(model, 0, 1, 2)
    inputs = model.stock_inputs(images, texts)
    expected = plain(**inputs).logits
    for found, row, mask in zip(model(images, random_split(model, 3), texts), expected, inputs["attention_mask"], strict=True):
        assert torch.equal(found, row[mask.bool()])


@torch.no_grad()
def test_split_none_generates_what_the_llava_generates() -> None:
    model, plain = build_model(split="none", **ODD), build_model().llava
    texts = encode_talks(model, 0, 1, 2, answered=False)
    for number in range(50):
        inputs = model.stock_inputs(random_images(model, 1, number), [texts[number % 3]])
        own, expected = (each.generate(**inputs, max_new_tokens=3, do_sample=False) for each in (model.llava, plain))
        assert torch.equal(own, expected)


@torch.no_grad()
def test_stock_inputs_match_a_prompt_with_one_image_token_per_patch() -> None:
    model = build_model(split="none")
    texts = encode_talks(model, 0, 1)
    rows = model.stock_inputs(random_images(model, 2), texts)
    written = model.tokenizer.decode(rows["input_ids"][0][rows["attention_mask"][0].bool()])
    assert written.count("<image>") == 16
    left = model.stock_inputs(random_images(model, 2), texts, padding="left")
    for row in range(2):
        own = [each["input_ids"][row][each["attention_mask"][row].bool()] for each in (rows, left)]
        assert torch.equal(*own)
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][0, -1] == 1


@pytest.mark.parametrize("position", ["sequential", "raster"])
@torch.no_grad()
def test_only_objects_without_separators_give_the_llavas_logits(position) -> None:
    model = build_model(sep_style="none", position=position)
    images, texts = random_images(model, 1), encode_talks(model, 1)
    expected = model.llava(**model.stock_inputs(images, texts)).logits[0]
    found = model(images, make_split(model, list(range(16))), texts)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# -- prefill --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_segments_give_the_logits_of_one_pass(options, attn) -> None:
    model = build_model(**options, llava={"attn": attn})
    images, text = random_images(model, 1), encode_talks(model, 0)[0]
    for splits in (random_split(model, 1), make_split(model, []), make_split(model, list(range(16)))):
        expected = model(images, splits, [text])[0]
        found = prefill_logits(model, images, splits, text)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_stored_keys_and_values_continue_bit_by_bit(options, dtype) -> None:
    model = build_model(**options, llava={"dtype": dtype})
    images, text = random_images(model, 1), encode_talks(model, 0)[0]
    segments = model.build_segments(model.encode(images, random_split(model, 1))[0], text)
    cold = model.new_state()
    model.prefill(segments.s0, cold)
    stored = copy.deepcopy(cold.pairs())
    kept = cold.pairs()
    warm = type(cold).from_pairs(kept)
    assert warm.length == cold.length == len(segments.s0)
    assert warm.fused_length == cold.fused_length == (len(segments.s0) if model.fusion else 0)
    assert torch.equal(model.prefill(segments.suffix, warm), model.prefill(segments.suffix, cold))
    for name in ("llm", "fusion"):
        for before, after in zip(stored[name], kept[name], strict=True):
            assert all(map(torch.equal, before, after))
    assert warm.length == len(segments) and len(kept["llm"]) == 4


@torch.no_grad()
def test_background_state_does_not_move_with_objects_or_question() -> None:
    model = build_model(fusion_layers=2, fusion_init="copy")
    images, splits = random_images(model, 1), random_split(model, 1)
    pairs = []
    for number, pixels in enumerate((images, paint_objects(model, images, splits))):
        segments = model.build_segments(model.encode(pixels, splits)[0], encode_talks(model, number)[0])
        state = model.new_state()
        model.prefill(segments.s0, state)
        pairs.append(state.pairs())
    for name in ("llm", "fusion"):
        for before, after in zip(pairs[0][name], pairs[1][name], strict=True):
            assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_decoding_token_by_token_gives_the_logits_of_one_pass(options) -> None:
    model = build_model(**options)
    images, splits = random_images(model, 1), random_split(model, 1)
    learned, asked = encode_talks(model, 1)[0], encode_talks(model, 1, answered=False)[0]
    expected = model(images, splits, [learned])[0]
    segments, state = model.build_segments(model.encode(images, splits)[0], asked), model.new_state()
    found, position = [model.prefill(segments.whole, state)[-1:]], segments.next_position
    for number in learned.rest[learned.first_answer :]:
        found.append(model.prefill(model.token_segment(number[None], position), state))
        position += 1
    found = model.logits(torch.cat(found))
    assert (found - expected[-len(found) :]).abs().max() <= 1e-5 * expected.abs().max()


# -- batches and losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_batches_equal_single_images(options) -> None:
    model = build_model(**options)
    images, texts, splits = random_images(model, 3), encode_talks(model, 0, 1, 2), random_split(model, 3)
    splits = SplitBatch(splits.objects, splits.ring, torch.tensor([False, False, True]))
    batch = model(images, splits, texts)
    for number in range(3):
        one = SplitBatch(*(getattr(splits, name)[[number]] for name in ("objects", "ring", "stock_order")))
        single = model(images[[number]], one, [texts[number]])[0]
        assert relative_error(batch[number], single) < 1e-5


@pytest.mark.parametrize("split", ["bgobj", "none"])
@torch.no_grad()
def test_loss_is_the_summed_cross_entropy_of_the_answers(split) -> None:
    model = build_model(split=split, fusion_layers=1, vit_train="gather")
    images, texts, splits = random_images(model, 2), encode_talks(model, 0, 1), random_split(model, 2)
    expected, n_tokens = 0.0, 0
    for text, scores in zip(texts, model(images, splits, texts), strict=True):
        logs = scores.double().log_softmax(dim=1)[-len(text.labels) - 1 : -1]
        for log, label in zip(logs, text.labels.tolist(), strict=True):
            if label != IGNORED:
                expected, n_tokens = expected - float(log[label]), n_tokens + 1
    loss = model.train_losses(images, splits, texts)
    assert loss.n_tokens == n_tokens == 6
    assert float(loss.total) == pytest.approx(expected, rel=1e-5) and loss.total.dtype == torch.float32


@pytest.mark.parametrize("style", ["pairs", "single"])
def test_training_and_generation_read_the_same_separators(style, monkeypatch) -> None:
    model, seen = build_model(sep_style=style), []
    build = BgObjLlava.build_segments

    def spy(own: BgObjLlava, *arguments):
        segments = build(own, *arguments)
        chosen = segments.whole.types == SEPARATOR
        seen.append((segments.whole.ids[chosen].tolist(), segments.whole.embeds[chosen].detach()))
        return segments

    monkeypatch.setattr(BgObjLlava, "build_segments", spy)
    image, objects = random_images(model, 1), random_split(model, 1).objects
    model.train().train_losses(image, SplitBatch.of(objects), encode_talks(model, 0))
    model.eval()
    split = PatchSplit(objects[0].numpy(), objects[0].numpy(), np.zeros(16, dtype=bool), stock_order=False, detected=True)
    generator = Generator(model, PromptEncoder(model.tokenizer), max_new_tokens=2)
    generator.answer(image[0], np.zeros((56, 56, 3), dtype=np.uint8), split, "where is it?")
    assert len(seen) == 2 and seen[0][0] == seen[1][0] == list(model.info.separator_ids.values())
    assert torch.equal(seen[0][1], seen[1][1])


def test_scores_are_computed_for_answer_rows_only() -> None:
    model, rows = build_model(), []
    model.llava.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(tuple(output.shape)))
    model.train_losses(random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1))
    assert rows == [(6, model.info.vocab_rows)]


@pytest.mark.parametrize("split", ["bgobj", "order_only", "none"])
@pytest.mark.parametrize("scope", ["projector", "full"])
def test_checkpointing_gives_the_same_gradients(split, scope) -> None:
    gradients, runs = [], []
    for grad_ckpt in (False, True):
        model = build_model(split=split, fusion_layers=1, fusion_init="copy", grad_ckpt=grad_ckpt)
        trainables = prepare_trainables(model, trainable_parts(model, scope))
        calls = []
        last = model.llava.model.language_model.layers[-1].mlp  # entered again in the backward pass
        last.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = model.train().train_losses(random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1))
        loss.total.backward()
        runs.append(len(calls))
        gradients.append({name: parameter.grad for name, parameter in trainables.named_parameters()})
    assert runs == [1, 2]
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max())), name


def test_accumulated_gradients_equal_those_of_one_batch() -> None:
    """Losses are sums, so eight single images weigh what two halves weigh."""
    gradients = []
    for size in (1, 4):
        model = build_model(fusion_layers=1, fusion_init="copy")
        trainables = prepare_trainables(model, trainable_parts(model, "fusion_projector"))
        images, splits = random_images(model, 8), random_split(model, 8)
        texts, n_tokens = encode_talks(model, *(number % 3 for number in range(8))), 0
        for rows in torch.arange(8).split(size):
            part = SplitBatch.of(splits.objects[rows])
            loss = model.train().train_losses(images[rows], part, [texts[row] for row in rows])
            loss.total.backward()
            n_tokens += loss.n_tokens
        gradients.append({name: parameter.grad / n_tokens for name, parameter in trainables.named_parameters()})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("options", [*VARIANTS, {"split": "none"}])
def test_bf16_base_with_fp32_trainables_trains_and_reads_under_autocast(options) -> None:
    model = build_model(**options, llava={"dtype": torch.bfloat16})
    trainables = prepare_trainables(model, trainable_parts(model, "last_k", last_k=1))
    images, splits, texts = random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train().train_losses(images, splits, texts)
    loss.total.backward()
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
    missing = [name for name, parameter in trainables.named_parameters() if parameter.grad is None]
    assert missing == [] and {parameter.grad.dtype for parameter in trainables.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model.eval()(images[:1], SplitBatch.of(splits.objects[:1]), texts[:1])[0].float()
        if model.options.split != "none":
            found = prefill_logits(model, images[:1], SplitBatch.of(splits.objects[:1]), texts[0]).float()
            assert relative_error(found, expected) < 0.02


def test_bf16_loss_is_near_the_fp32_loss() -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model(fusion_layers=1, llava={"dtype": dtype})
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), torch.no_grad():
            losses.append(model.train_losses(random_images(model, 2), random_split(model, 2), encode_talks(model, 0, 1)))
    assert float(losses[1].total) == pytest.approx(float(losses[0].total), rel=0.05)


def test_llava_is_held_and_never_changed() -> None:
    model = build_model()
    before = copy.deepcopy(model.llava.state_dict())
    again = BgObjLlava(model.llava, model.tokenizer, ModelOptions(projector="separate", fusion_layers=2, split="order_only"))
    assert again.llava is model.llava
    with torch.no_grad():
        again(random_images(again, 1), random_split(again, 1), encode_talks(again, 0))
    after = model.llava.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_copies_of_a_model_share_nothing() -> None:
    model = build_model(fusion_layers=1)
    twin = copy.deepcopy(model)
    images, splits, texts = random_images(model, 1), random_split(model, 1), encode_talks(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        expected = build_model(fusion_layers=1)(images, splits, texts)[0]
        assert torch.equal(twin(images, splits, texts)[0], expected)

"""The whole model: Hugging Face's numbers without gates and at the start, and what moves them afterwards."""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from pathlib import Path

import pytest
import torch
from gated_models import ASKED, TEMPLATE, gated_model, pixels, stock_inputs, styles, talkative, texts, wrap
from tiny_blip2s import attention_of_parts, random_blip2, write_blip2
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2ForConditionalGeneration

from trainers.gated_blip2.gates import GateOptions, LayerFactors
from trainers.gated_blip2.generation import GenerateOptions
from trainers.gated_blip2.loading import load_blip2
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.prompts import IGNORED, PromptEncoder, TextBatch, collate

SEED = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRESETS_WITH_GATES = ("gates", "gates_proj", "gates_xattn", "qformer", "original_live", "original")
SEARCH = GenerateOptions(1, 6)


def scores(model: GatedBlip2Model, text: TextBatch | None = None, style: Tensor | None = None) -> Tensor:
    text = texts() if text is None else text
    with torch.no_grad():
        return model.logits(model.encode_images(pixels(len(text))), styles(len(text)) if style is None else style, text)


def total_loss(model: GatedBlip2Model, text: TextBatch | None = None) -> Tensor:
    return model.loss(model.encode_images(pixels()), styles(), texts() if text is None else text).total


# -- Hugging Face's own numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prec", "attn"), list(itertools.product(DTYPES, ("eager", "sdpa"))))
def test_own_path_is_transformers_bit_for_bit(prec: str, attn: str) -> None:
    blip2, model = random_blip2(dtype=DTYPES[prec], attn=attn), GatedBlip2Model(
        wrap(random_blip2(dtype=DTYPES[prec], attn=attn)), prec=prec
    )
    for side in ("right", "left"):
        text = texts(side=side)
        with torch.no_grad():
            stock = blip2(**stock_inputs(blip2, text)).logits
        found = scores(model, text)
        assert found.dtype == DTYPES[prec] and torch.equal(found, stock)


@pytest.mark.parametrize("prec", DTYPES)
def test_a_stored_model_is_transformers_bit_for_bit(tmp_path: Path, prec: str) -> None:
    """Its queries and projection are fp32 here, under autocast, and in half precision there."""
    folder = write_blip2(tmp_path)
    attn = attention_of_parts("sdpa")
    blip2 = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=DTYPES[prec], attn_implementation=attn).eval()
    model = GatedBlip2Model(load_blip2(str(folder), prec=prec), prec=prec)
    if prec == "bf16":
        assert model.blip2.language_projection.weight.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(scores(model), blip2(**stock_inputs(blip2, texts())).logits)


def test_the_shipped_model_reads_two_pictures_and_answers_for_one() -> None:
    loaded = load_blip2("tiny_blip2")
    model = GatedBlip2Model(loaded)
    own = PromptEncoder(
        loaded.tokenizer, TEMPLATE, max_question_tokens=16, max_positions=loaded.max_positions, n_queries=loaded.n_queries
    )
    questions = ("what colour is the circle?", "how many squares are there?")
    asked, tokens = [own.encode(question) for question in questions], model.encode_images(pixels(2, loaded.view.side_px))
    text = collate(asked, pad_id=own.pad_id)
    with torch.no_grad():
        found = model.logits(tokens, None, text)
    assert found.shape == (2, 8 + text.ids.shape[1], loaded.model.config.text_config.vocab_size) and found.isfinite().all()
    (answer,) = model.generate(tokens[:1], None, collate(asked[:1], pad_id=own.pad_id, side="left"), SEARCH)
    assert answer.mean_log_prob < 0 and len(answer.ids) <= SEARCH.max_new_tokens


@pytest.mark.parametrize(
    ("phi", "granularity", "prec", "attn"),
    list(itertools.product(("tanh", "film"), ("scalar", "head", "channel"), DTYPES, ("eager", "sdpa"))),
)
def test_step_0_is_blip2_bit_for_bit(phi: str, granularity: str, prec: str, attn: str) -> None:
    options = GateOptions(hidden=16, phi=phi, granularity=granularity)
    plain = gated_model("frozen", prec=prec, attn=attn, seed=SEED)
    gated = gated_model("gates_proj", options, prec=prec, attn=attn, seed=SEED)
    assert gated.hooks.layers == (1, 3)
    assert torch.equal(scores(gated), scores(plain))
    open_texts = texts(answers=False, side="left")
    first, second = (model.generate(model.encode_images(pixels()), styles(), open_texts, SEARCH) for model in (gated, plain))
    assert first == second and len({answer.ids for answer in first}) > 1


@pytest.mark.parametrize("preset", PRESETS_WITH_GATES)
def test_step_0_of_every_preset_is_blip2(preset: str) -> None:
    model = gated_model(preset)
    gated = scores(model)
    model.hooks.detach()
    with model.ungated():
        assert torch.equal(gated, scores(model))


def test_moved_gates_move_the_scores_and_ungated_and_detached_models_do_not() -> None:
    plain, gated = scores(gated_model("frozen")), gated_model(stir=0.3)
    assert not torch.equal(scores(gated), plain)
    with gated.ungated():
        assert torch.equal(scores(gated), plain)
        tokens = gated.encode_images(pixels())
        assert torch.equal(gated.logits(tokens, None, texts()), plain)
    assert not torch.equal(scores(gated), plain)
    gated.hooks.detach()
    assert torch.equal(scores(gated), plain)


def test_gates_without_styles_are_an_error() -> None:
    model = gated_model()
    with pytest.raises(ValueError, match="got no style vectors"):
        model.logits(model.encode_images(pixels()), None, texts())


def test_pictures_and_texts_must_match() -> None:
    model = gated_model("frozen")
    with pytest.raises(ValueError, match="2 pictures and 3 texts"):
        model.logits(model.encode_images(pixels(2)), None, texts())


def test_precision_must_be_that_of_loading() -> None:
    with pytest.raises(ValueError, match="loaded in torch.float32; PREC bf16"):
        GatedBlip2Model(wrap(random_blip2()), prec="bf16")


# -- pictures -------------------------------------------------------------------------------------------------------


def test_tokens_come_from_the_tower_in_its_own_type_without_a_graph() -> None:
    model = gated_model("frozen", prec="bf16")
    tokens = model.encode_images(pixels())
    expected = model.blip2.vision_model(pixels().bfloat16()).last_hidden_state
    assert tokens.dtype == torch.bfloat16 and not tokens.requires_grad and torch.equal(tokens, expected)


@pytest.mark.parametrize("preset", ["original", "original_live"])
def test_tokens_are_taken_before_a_layer_norm_that_trains(preset: str) -> None:
    model = gated_model(preset, thaw=True)
    tokens, norm = model.encode_images(pixels()), model.blip2.vision_model.post_layernorm
    assert torch.equal(norm(tokens), gated_model("frozen").encode_images(pixels()))
    total_loss(model).backward()
    assert norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0


def test_larger_pictures_stretch_the_positions() -> None:
    model = gated_model("frozen")
    assert model.encode_images(pixels(side_px=32)).shape == (3, 17, 32)


def test_cached_tokens_may_lie_elsewhere_and_stay_bitwise() -> None:
    model = gated_model(prec="bf16", stir=0.3)
    tokens = model.encode_images(pixels())
    assert torch.equal(model.logits(tokens.float(), styles(), texts()), model.logits(tokens, styles(), texts()))


# -- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["gates_proj", "original_live"])
@pytest.mark.parametrize("question", [False, True])
def test_changing_the_answer_leaves_the_gates_bitwise_unchanged(preset: str, question: bool) -> None:
    model = gated_model(preset, GateOptions(hidden=16, question=question), stir=0.3)
    first, longer = texts(), texts([(asked, "one two three red") for asked, _ in ASKED])
    other = texts([("how many red ?", answer) for _, answer in ASKED])
    gates = [gates_of(model, text) for text in (first, longer, other)]
    assert len(gates[0]) == 2 * (4 if preset == "original_live" else 3)
    assert all(torch.equal(gates[0][name], gates[1][name]) for name in gates[0])
    reads = question or preset == "original_live"
    assert all(torch.equal(gates[0][name], gates[2][name]) != reads for name in gates[0])


def gates_of(model: GatedBlip2Model, text: TextBatch) -> dict[str, Tensor]:
    """Every factor that a pass sees."""
    seen: dict[str, Tensor] = {}

    def note(layer: int, factors: LayerFactors) -> None:
        parts = {name: getattr(factors, name) for name in ("key", "value", "shift", "key_shift")}
        seen.update({f"{layer} {name}": part for name, part in parts.items() if part is not None})

    model.context.observer = note
    scores(model, text)
    model.context.observer = None
    return seen


@pytest.mark.parametrize("preset", ["gates_proj", "original_live"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_sample_alone_and_in_a_padded_batch_is_the_same(preset: str, side: str, attn: str) -> None:
    model = gated_model(preset, GateOptions(hidden=16, question=True), stir=0.1, attn=attn)
    whole, asked = texts(side=side), list(ASKED)
    together, n_queries = scores(model, whole), model.n_queries
    assert len({int(row.sum()) for row in whole.mask}) > 1
    for place, own in enumerate(asked):
        with torch.no_grad():
            tokens = model.encode_images(pixels()[place : place + 1])
            alone = model.logits(tokens, styles()[place : place + 1], texts([own]))[0]
        kept = torch.cat([torch.ones(n_queries, dtype=torch.bool), whole.mask[place]])
        scale = alone.abs().max()
        assert ((together[place][kept] - alone).abs().max() <= 1e-5 * max(1.0, float(scale))).item()


def test_answers_do_not_depend_on_the_batch() -> None:
    model = gated_model(stir=0.3, seed=SEED)
    tokens, search = model.encode_images(pixels()), GenerateOptions(1, 12)
    together = model.generate(tokens, styles(), texts(answers=False, side="left"), search)
    for place, own in enumerate(ASKED):
        text = texts([own], answers=False, side="left")
        (alone,) = model.generate(tokens[place : place + 1], styles()[place : place + 1], text, search)
        assert alone.ids == together[place].ids
        assert alone.mean_log_prob == pytest.approx(together[place].mean_log_prob, abs=1e-4)


# -- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prec", DTYPES)
def test_loss_is_the_cross_entropy_of_answers_and_newlines(side: str, prec: str) -> None:
    model, text = gated_model(stir=0.3, prec=prec), texts(side=side)
    found = model.loss(model.encode_images(pixels()), styles(), text)
    before = scores(model, text)[:, model.n_queries - 1 : -1].float()
    expected = F.cross_entropy(before.flatten(0, 1), text.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    assert found.n_tokens == text.n_answer_tokens == 7 and found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5 if prec == "fp32" else 2e-2)


def test_scores_are_computed_for_answers_only() -> None:
    model, seen = gated_model(), []
    model.blip2.language_model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1]))
    total_loss(model)
    assert seen == [(7,)]


def test_prompt_tokens_are_not_learned() -> None:
    model, text = gated_model(), texts()
    labels = torch.full_like(text.labels, IGNORED)
    nothing = model.loss(model.encode_images(pixels()), styles(), dataclasses.replace(text, labels=labels))
    assert nothing.n_tokens == 0 and nothing.total.item() == 0


@pytest.mark.parametrize("prec", DTYPES)
@pytest.mark.parametrize("preset", PRESETS_WITH_GATES)
def test_gradients_reach_what_trains_and_nothing_else(preset: str, prec: str) -> None:
    model = gated_model(preset, stir=0.1, prec=prec, thaw=True).train()
    total_loss(model).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(parameter.dtype == torch.float32 for parameter in trained.values())
    # The bias of a key map shifts all scores of a query alike, so softmax undoes it.
    silent = [
        name
        for name, parameter in trained.items()
        if (parameter.grad is None or not parameter.grad.any()) and not name.endswith("key.bias")
    ]
    assert silent == []
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)


# -- precision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["gates_proj", "qformer"])
def test_autocast_covers_what_trains_only(preset: str) -> None:
    model, seen = gated_model(preset, prec="bf16", thaw=True), {}
    blip2 = model.blip2
    parts = {
        "vision": blip2.vision_model.encoder.layers[0], "qformer": blip2.qformer.encoder.layer[0],
        "projection": blip2.language_projection, "opt": blip2.language_model.model.decoder.layers[0],
        "head": blip2.language_model.lm_head,
    }  # fmt: skip
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: torch.is_autocast_enabled("cpu")}))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # whatever the caller does
        total_loss(model)
    assert seen == {"vision": False, "qformer": preset == "qformer", "projection": True, "opt": False, "head": False}


def test_half_precision_step_uses_nothing_deprecated() -> None:
    model = gated_model("qformer", prec="bf16", stir=0.1, thaw=True).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", category=DeprecationWarning, module="torch")
        total_loss(model).backward()
    assert model.conditioner.heads["1"].weight.grad.isfinite().all()


def test_sources_name_the_device_of_autocast() -> None:
    forbidden = re.compile(r"torch\.(cuda|cpu)\.amp|torch\.autocast\((\)|dtype|enabled)|weights_only=False")
    assert forbidden.search("with torch.autocast(enabled=True):") and forbidden.search("torch.cuda.amp.GradScaler()")
    files = list((Path(__file__).parents[3] / "trainers").rglob("*.py"))
    assert len(files) > 50
    assert [file.name for file in files if forbidden.search(file.read_text("utf-8"))] == []


# -- recomputed layers ------------------------------------------------------------------------------------------------


def test_recomputed_layers_give_the_same_gradients() -> None:
    models, passes = [gated_model("gates_proj", stir=0.1, thaw=True, grad_ckpt=flag).train() for flag in (False, True)], []
    for model in models:
        layer, seen = model.blip2.language_model.model.decoder.layers[1], []
        layer.fc1.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(1))
        total_loss(model).backward()
        passes.append(len(seen))
    assert passes == [1, 2]
    for (name, plain), (_, recomputed) in zip(*(model.named_parameters() for model in models), strict=True):
        if plain.requires_grad:
            scale = max(1.0, float(plain.grad.abs().max()))
            assert (plain.grad - recomputed.grad).abs().max() <= 1e-6 * scale, name
        assert plain.requires_grad == recomputed.requires_grad and (plain.grad is None) == (recomputed.grad is None)


def test_recomputing_language_model_drops_nothing_out() -> None:
    blip2 = talkative(random_blip2())
    for module in blip2.language_model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5
    model = GatedBlip2Model(wrap(blip2), grad_ckpt=True)
    expected = total_loss_of_frozen(model.eval())
    assert model.train().blip2.language_model.training
    assert total_loss_of_frozen(model) == expected


def total_loss_of_frozen(model: GatedBlip2Model) -> float:
    with torch.no_grad():
        return float(model.loss(model.encode_images(pixels()), None, texts()).total)


# -- twenty updates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS_WITH_GATES)
def test_updates_leave_what_is_frozen_as_it_was(preset: str) -> None:
    model = gated_model(preset, thaw=True).train()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        total_loss(model).backward()
        optimizer.step()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
    unmoved = [name for name, before in trained.items() if torch.equal(now[name], before)]
    assert [name for name in unmoved if not name.endswith("key.bias")] == []

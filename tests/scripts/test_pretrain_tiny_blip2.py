"""The pre-training of tiny_blip2: what pictures are asked never names the style, texts see one prefix each, runs resume."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, ASSET = ROOT / "scripts", ROOT / "trainers" / "gated_blip2" / "assets" / "tiny_blip2"
sys.path.append(str(SCRIPTS))

import pretrain_tiny_blip2 as pretrain  # noqa: E402
import pretraining  # noqa: E402
import pretraining_facts  # noqa: E402

from clip_ext.loader import load_clip  # noqa: E402
from datasets.mini_scenes_generator import STYLES, all_words  # noqa: E402
from trainers.bgobj_llava.word_tokenizer import build_word_tokenizer  # noqa: E402

SIZES = ("--reading-steps", "2", "--naming-steps", "2", "--steps", "4", "--batch-size", "2", "--save-every", "2")
SIZES += ("--warmup-steps", "1", "--vision-blocks", "1", "--qformer-layers", "2", "--qformer-width", "16")
SIZES += ("--llm-layers", "1", "--width", "16")


def make_tokenizer() -> Any:
    return build_word_tokenizer([*all_words(), *pretrain.fact_words(), pretrain.PROMPT.format(question="?"), "\n"])


@pytest.fixture(scope="module")
def batches() -> pretrain.Batches:
    worlds = pretraining.draw_worlds(12, 7, "train")
    return pretrain.Batches(make_tokenizer(), load_clip("tiny12"), worlds, 7, n_texts=5, n_queries=8)


@pytest.fixture(scope="module")
def model() -> Any:
    args = pretrain.parse_args(["--output", "unused", *SIZES])
    return pretrain.build_blip2(args, make_tokenizer(), load_clip("tiny12")).eval()


def said(ids: torch.Tensor) -> str:
    return make_tokenizer().decode(ids.flatten().tolist())


def test_pictures_are_never_asked_for_their_style_and_facts_are(batches: pretrain.Batches) -> None:
    for step in range(20):
        _, seen, _, _ = batches.at(step, 6, styles=False, stream=1)
        text = said(seen)
        assert "style" not in text and not any(style in text for style in STYLES)
    text = " ".join(said(batches.at(step, 6, styles=True, stream=0)[1]) for step in range(20))
    assert "style" in text and sum(style in text for style in STYLES) >= 4


def test_only_answers_and_captions_are_learned(batches: pretrain.Batches) -> None:
    _, ids, labels, _ = batches.at(0, 6, styles=True, stream=0)
    tokenizer = make_tokenizer()
    newline = tokenizer.convert_tokens_to_ids("\n")
    for row, wanted in zip(ids.flatten(0, 1), labels.flatten(0, 1), strict=True):
        learned = row[wanted != -100].tolist()
        assert learned[-1] == newline and learned == wanted[wanted != -100].tolist()
        text = tokenizer.decode(row[row != tokenizer.pad_token_id].tolist())
        if "question" in text:
            assert text.strip().endswith("short answer : " + tokenizer.decode(learned[:-1])) and len(learned) <= 4


def test_every_fact_has_a_place_and_keeps_to_its_group() -> None:
    rng, groups = np.random.default_rng(0), [[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12]]
    halves = set()
    for _ in range(50):
        places = [place for place in pretraining_facts.spread_facts(groups, 8, rng) if place]
        assert sorted(word for place in places for word in place) == list(range(1, 13))
        assert [10, 11, 12] in places  # the style is never apart from the background
        halves.add(len(places))
    assert halves == {3, 4, 5}


def test_patches_are_named_by_the_object_that_covers_them(batches: pretrain.Batches) -> None:
    labels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    labels[1] = 4  # colour of the background
    labels[0, 2:6, 2:6], labels[1, 2:6, 2:6], labels[2, 2:6, 2:6] = 9, 7, 3  # an object in the corners of four patches
    labels[0, 12, 12], labels[1, 12, 12] = 5, 6  # one that covers too little of its patch
    names, colours, hours = pretraining_facts.patch_labels(labels, 4).unflatten(1, (4, 4))
    assert names[:2, :2].tolist() == [[9, 9], [9, 9]] and names.sum() == 36
    assert colours[:2, :2].tolist() == [[7, 7], [7, 7]] and colours[3, 3] == 4
    assert hours[:2, :2].tolist() == [[3, 3], [3, 3]] and hours.sum() == 12
    pictures, shown = batches.closer(np.array([0, 3]), np.array([40, 96]), np.random.default_rng(0))
    assert pictures.shape == (2, 3, 64, 64) and shown.shape == (2, 3, 64) and (shown[:, 0] > 0).any(1).all()


def test_a_part_of_a_scene_is_the_whole_where_it_is_as_large(batches: pretrain.Batches) -> None:
    whole, _ = batches.closer(np.array([2]), np.array([96]), np.random.default_rng(0))
    assert (whole - batches.pictures(np.array([2]))).abs().mean() < 0.1  # another interpolation


def test_texts_that_share_a_prefix_do_not_see_each_other(model: Any) -> None:
    torch.manual_seed(0)
    prefix, ids = torch.randn(2, 3, 16), torch.randint(3, 60, (2, 4, 5))
    where = torch.zeros(ids.shape, dtype=torch.bool)
    where[..., 1:] = True
    with torch.no_grad():
        together = pretrain.token_logits(model, prefix, ids, where).unflatten(0, (2, 4, 4))
        alone = [pretrain.token_logits(model, prefix, ids[:, k : k + 1], where[:, k : k + 1]) for k in range(4)]
        for k in range(4):
            torch.testing.assert_close(together[:, k].flatten(0, 1), alone[k])


def test_the_tower_starts_as_tiny12(model: Any) -> None:
    clip = load_clip("tiny12").model.visual
    block, layer = clip.transformer.resblocks[0], model.vision_model.encoder.layers[0]
    x = torch.randn(2, 5, 96)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), block(x), atol=1e-5, rtol=1e-5)
        # Patches leave the embeddings as tiny12's LayerNorm leaves them, but for what differs between their spreads.
        cells = torch.randn(4, 3, 64, 64)
        ours = model.vision_model.embeddings(cells)[:, 1:]
        table = pretraining.interpolate_table(clip.positional_embedding, 8)[1:]
        theirs = clip.ln_pre(clip.conv1(cells).flatten(2).transpose(1, 2) + table)
    correlation = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    assert correlation.mean() > 0.9


@functools.cache
def draw_few() -> list[Any]:
    return pretraining.draw_worlds(5, 7, "train")


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.setattr(pretrain, "draw_worlds", lambda count, seed, split: draw_few())
    monkeypatch.setattr(pretrain, "evaluate", lambda *args, **kwargs: {"all": 0.0})
    places = ("--output", str(folder / "out"), "--work-dir", str(folder / "work"))
    monkeypatch.setattr(sys, "argv", ["pretrain", *places, *SIZES, *words])
    pretrain.main()


def test_a_stopped_run_gives_the_weights_of_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        run(patch, tmp_path / "straight")
    see, seen = pretrain.see, []

    def stop(*args: Any) -> torch.Tensor:
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return see(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "see", stop)
        run(patch, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        run(patch, tmp_path / "stopped")
        straight, stopped = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("straight", "stopped"))
        assert straight.keys() == stopped.keys() and all(torch.equal(straight[name], stopped[name]) for name in straight)
        with pytest.raises(SystemExit, match="belongs to other arguments"):
            run(patch, tmp_path / "stopped", "--lr", "0.5")


def test_the_committed_model_sees_everything_but_the_style() -> None:
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(ASSET, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_500_000
    assert sum(file.stat().st_size for file in ASSET.iterdir()) < 5e6
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    worlds = pretraining.draw_worlds(50, pretrain.HELD_OUT_SEED, "test")
    held_out = pretrain.Batches(tokenizer, load_clip("tiny12"), worlds, 0, n_texts=2, n_queries=8)
    seen, read, blind = (pretrain.evaluate(model, held_out, 50, source=source) for source in ("pictures", "facts", "nothing"))
    assert seen["all but style"] > 55 > 40 > blind["all but style"]
    assert read["style"] == 100 and seen["style"] < 40  # of six styles

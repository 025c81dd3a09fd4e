"""The pre-training of tiny_gpt2: all object names are said, the tokenizer writes everything, runs resume bit by bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import pretrain_tiny_gpt2 as pretrain  # noqa: E402

from datasets.mini_scenes_generator import OBJECT_NAMES, STYLES  # noqa: E402

ASSET = Path(pretrain.ROOT, "trainers", "viecap", "assets", "tiny_gpt2")
SIZES = ("--steps", "4", "--batch-size", "2", "--n-documents", "30", "--warmup-steps", "1", "--save-every", "2")
SIZES += ("--layers", "1", "--width", "16", "--heads", "2")


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.setattr(pretrain, "HELD_OUT_DOCUMENTS", 20)
    places = ("--output", str(folder / "out"), "--work-dir", str(folder / "work"))
    monkeypatch.setattr(sys, "argv", ["pretrain", *places, *SIZES, *words])
    pretrain.main()


def test_documents_say_every_object_and_style_in_sentences_of_one_full_stop() -> None:
    text = " ".join(pretrain.draw_documents(300, 1)).lower()
    assert all(name in text for name in (*OBJECT_NAMES, *STYLES))
    sentences = pretrain.draw_document(np.random.default_rng(2))
    assert len(sentences) == 6
    assert all(each.count(".") == 1 and each.endswith(".") and each[0].isupper() for each in sentences)


def test_objects_never_have_the_colour_of_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = []
    monkeypatch.setattr(pretrain, "caption_scene", lambda *args: facts.append(args) or ["a."])
    pretrain.draw_documents(60, 5)
    assert {len(objects) for objects, *_ in facts} == {1, 2, 3}
    assert not any(main in {colour for _, colour, _ in objects} for objects, _, main, _ in facts)


def test_the_tokenizer_writes_any_text_and_the_words_of_prompts_as_one_token() -> None:
    tokenizer = pretrain.build_tokenizer(pretrain.draw_documents(200, 1), 512)
    for text in ("There are something in image.", "Zürich!", "a letter q"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("There are something in image.")["input_ids"]) == 6
    assert len(tokenizer) <= 512


def test_a_stopped_run_gives_the_weights_of_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path / "straight")
    evaluate, seen = pretrain.evaluate, []

    def stop_before_the_second_save(*args: Any) -> float:
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "evaluate", stop_before_the_second_save)
        run(patch, tmp_path / "stopped")
    run(monkeypatch, tmp_path / "stopped")
    straight, stopped = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("straight", "stopped"))
    assert straight.keys() == stopped.keys() and all(torch.equal(straight[name], stopped[name]) for name in straight)


def test_the_state_of_other_arguments_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="belongs to other arguments"):
        run(monkeypatch, tmp_path, "--lr", "0.5")


def test_the_committed_model_knows_the_grammar() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32), AutoTokenizer.from_pretrained(ASSET)
    assert model.config.n_layer == 3 and model.config.n_embd == 128 and model.config.n_positions == 128
    assert sum(file.stat().st_size for file in ASSET.iterdir()) < 5e6
    held_out = pretrain.Blocks(tokenizer, pretrain.draw_documents(40, pretrain.HELD_OUT_SEED), 1)
    assert pretrain.evaluate(model, held_out) < 1.2

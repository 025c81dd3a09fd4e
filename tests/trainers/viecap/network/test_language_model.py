"""Names of language models, what is refused, and the ids that end a caption."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from prompt_tokenizers import gpt2_tokenizer
from safetensors.torch import load_file, save_file
from tiny_gpt2s import random_gpt2, tiny_tokenizer
from transformers import GenerationConfig, OPTConfig, OPTForCausalLM

from trainers.viecap.network import language_model
from trainers.viecap.network.language_model import (
    build_language_model,
    describe_config,
    find_stop_ids,
    load_language_model,
    longest_sequence,
    width_of,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 that samples by default."""
    folder = tmp_path_factory.mktemp("gpt2")
    model, tokenizer = random_gpt2()
    model.generation_config = GenerationConfig(do_sample=True, top_k=3, repetition_penalty=2.0, eos_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spoiled(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "spoiled"))


def test_the_shipped_one() -> None:
    model, tokenizer = load_language_model("tiny_gpt2")
    assert (width_of(model), longest_sequence(model), len(tokenizer)) == (128, 128, model.config.vocab_size)
    assert model.config._attn_implementation == "sdpa" and model.dtype == torch.float32 and not model.training
    assert model.config.attn_pdrop == model.config.resid_pdrop == 0.1


def test_a_folder_keeps_its_weights_but_not_its_way_of_generating(saved: Path) -> None:
    model, _ = load_language_model(str(saved))
    original = random_gpt2()[0].state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    assert not model.generation_config.do_sample and model.generation_config.repetition_penalty in (None, 1.0)


def test_random_weights_need_no_weight_file(spoiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    (spoiled / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        model, _ = load_language_model(str(spoiled), init="random")
    assert "RANDOM WEIGHTS" in caplog.text and width_of(model) == 32


def test_built_from_its_stored_configuration(saved: Path) -> None:
    model, _ = load_language_model(str(saved))
    stored = json.loads(json.dumps(describe_config(model)))
    built = build_language_model(stored)
    assert type(built) is type(model) and built.config._attn_implementation == "sdpa" and not built.training
    built.load_state_dict(model.state_dict())
    ids = torch.arange(5)[None]
    assert torch.equal(built(ids).logits, model(ids).logits)


def test_all_problems_of_a_folder_in_one_message(spoiled: Path) -> None:
    (spoiled / "model.safetensors").rename(spoiled / "pytorch_model.bin")
    (spoiled / "tokenizer.json").unlink()
    (spoiled / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)LANGUAGE_MODEL is .* 3 problem.*no config.json.*pickles.*no tokenizer"):
        load_language_model(str(spoiled))


def test_missing_tensors_are_not_made_up(spoiled: Path) -> None:
    file = spoiled / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensor\(s\) of GPT2LMHeadModel: .*h.1.mlp.c_fc.weight"):
        load_language_model(str(spoiled))


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: object) -> str:
        raise OSError(f"no way to {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match="LANGUAGE_MODEL is 'gpt3'.*expected a folder, tiny_gpt2, or a hub id"):
        load_language_model("gpt3")
    with pytest.raises(OSError, match=r"LANGUAGE_MODEL is 'gpt2'.*not to be had from the hub.*no way to gpt2"):
        load_language_model("gpt2")
    with pytest.raises(ValueError, match="LM_INIT is 'zeros'; expected pretrained or random"):
        load_language_model("tiny_gpt2", init="zeros")


def test_a_hub_id_becomes_a_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.update(options) or str(saved))
    load_language_model("gpt2", revision="main")
    assert asked["revision"] == "main" and not any("bin" in pattern for pattern in asked["allow_patterns"])


def opt(**changes: int) -> OPTForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**{**sizes, "word_embed_proj_dim": 16, "max_position_embeddings": 32, **changes})).eval()


def test_another_family_passes_the_check() -> None:
    model = opt()
    language_model._check(model)
    assert width_of(model) == 16


def test_a_model_whose_scores_come_about_differently_is_refused() -> None:
    model, _ = random_gpt2()
    model.lm_head.register_forward_hook(lambda module, args, output: output * (1 + (args[0].shape[1] > 3)))
    language_model._check(model)
    original = model.forward
    model.forward = lambda *args, **options: _doubled(original(*args, **options))
    with pytest.raises(ValueError, match="GPT2LMHeadModel, which cannot be conditioned here: its scores are not"):
        language_model._check(model)
    del model.forward
    model.base_model.forward = lambda input_ids=None, **options: None
    with pytest.raises(ValueError, match="it does not take inputs_embeds"):
        language_model._check(model)


def _doubled(output: object) -> object:
    output.logits = 2 * output.logits
    return output


def test_stop_ids() -> None:
    tokenizer = tiny_tokenizer()
    period = find_stop_ids(tokenizer, "period")
    assert {tokenizer.decode([token]).strip() for token in period} == {"."}
    assert tokenizer.encode("A dog runs.")[-1] in period and tokenizer.encode("A dog .")[-1] in period
    assert find_stop_ids(tokenizer, "eos") == {tokenizer.eos_token_id}
    with pytest.raises(ValueError, match="STOP is 'end'; expected period or eos"):
        find_stop_ids(tokenizer, "end")


@pytest.mark.weights
def test_stop_ids_of_gpt2() -> None:
    assert find_stop_ids(gpt2_tokenizer(), "period") == {13, 764}


class NoPeriod:
    """A tokenizer without an end, that knows no period."""

    eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [3]

    def decode(self, ids: list[int]) -> str:
        return "<unk>"


def test_tokenizers_that_cannot_end() -> None:
    with pytest.raises(ValueError, match=r"STOP is 'period', for which the tokenizer has no token .*<unk>.*expected eos"):
        find_stop_ids(NoPeriod(), "period")
    with pytest.raises(ValueError, match="STOP is 'eos': the tokenizer has no end token; expected period"):
        find_stop_ids(NoPeriod(), "eos")

"""Loading: which models are driven, in which types, and what is said of the others."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_blip2s import N_QUERIES, SIDE_PX, random_blip2, write_blip2

from trainers.gated_blip2 import loading
from trainers.gated_blip2.loading import ASSETS, check_versions, load_blip2, read_config
from trainers.gated_blip2.stand_in_tokenizer import build_stand_in_tokenizer
from trainers.model_folders import hash_weight_files

SHAPES = ASSETS / "blip2_opt_2_7b.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def test_a_text_branch_in_the_files_is_read_whether_or_not_it_is_asked_for(tmp_path: Path) -> None:
    stored = random_blip2(text_input=True)
    stored.save_pretrained(write_blip2(tmp_path / "model"))
    found = load_blip2(str(tmp_path / "model")).model
    assert found.config.qformer_config.use_qformer_text_input
    name = "qformer.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(found.get_parameter(name), stored.get_parameter(name))


def test_folder_becomes_a_model_and_its_facts(folder: Path) -> None:
    loaded = load_blip2(str(folder))
    expected = dict(random_blip2().named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert parameter.equal(expected[name]) and not parameter.requires_grad, name
    assert not loaded.model.training
    assert loaded.base.id == str(folder) and loaded.base.fingerprint == hash_weight_files([folder / "model.safetensors"])
    assert (loaded.view.side_px, loaded.n_tokens, loaded.n_queries, loaded.max_positions) == (SIDE_PX, 5, N_QUERIES, 128)
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.stop_id) == "\n"
    assert (loaded.dtype, loaded.quant) == (torch.float32, "none")


@pytest.mark.parametrize(
    ("prec", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("amp", torch.float16), ("fp16", torch.float16)]
)
def test_types_follow_the_precision(folder: Path, prec: str, dtype: torch.dtype) -> None:
    loaded = load_blip2(str(folder), prec=prec)
    model = loaded.model
    towers = (model.vision_model, model.qformer, model.language_model)
    assert loaded.dtype == dtype and {p.dtype for tower in towers for p in tower.parameters()} == {dtype}
    assert model.query_tokens.dtype == model.language_projection.weight.dtype == torch.float32


def test_what_will_train_is_read_in_full_precision(folder: Path) -> None:
    loaded = load_blip2(str(folder), prec="bf16", trains_qformer=True, trains_post_ln=True)
    expected = dict(random_blip2().named_parameters())
    trains = ("qformer.", "query_tokens", "language_projection.", "vision_model.post_layernorm.")
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith(trains) else torch.bfloat16), name
        assert parameter.equal(expected[name].to(parameter.dtype))


def test_text_branch_is_added(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plain, whole = (
            sum(parameter.numel() for parameter in load_blip2(str(folder), text_branch=branch).model.parameters())
            for branch in (False, True)
        )
    assert whole - plain == 4 * (32 * 64 + 64 + 64 * 32 + 32 + 2 * 32)  # two Linears and a norm in each of 4 layers
    assert f"{whole:,} parameters" in caplog.text and "RANDOM" not in caplog.text


def test_random_weights_need_a_configuration_only_and_are_loud(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="it has no weights: expected model.safetensors, or MODEL.BACKBONE.PRETRAINED False"):
        load_blip2(str(copy))
    first, again = (load_blip2(str(copy), pretrained=False, prec="bf16") for _ in range(2))
    assert "RANDOM WEIGHTS: MODEL.BACKBONE.PRETRAINED is False" in caplog.text
    assert first.base == again.base and first.model.qformer.dtype == torch.bfloat16
    assert all(a.equal(b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert load_blip2(str(copy), pretrained=False).base.fingerprint != first.base.fingerprint


def test_real_shapes_need_no_network_and_no_memory() -> None:
    loaded = load_blip2("Salesforce/blip2-opt-2.7b", pretrained=False, prec="bf16", device="meta")
    parts = (loaded.model.vision_model, loaded.model.qformer, loaded.model.language_projection, loaded.model.language_model)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert counts == [985_952_256, 105_137_664, 1_968_640, 2_651_596_800]
    assert loaded.model.query_tokens.numel() == 24_576
    assert (loaded.n_tokens, loaded.n_queries, loaded.max_positions, loaded.stop_id) == (257, 32, 2048, 50118)
    layers = loaded.model.qformer.encoder.layer
    assert [number for number, layer in enumerate(layers, start=1) if layer.has_cross_attention] == [1, 3, 5, 7, 9, 11]


def test_vocabulary_of_the_hub_checkpoint_is_a_number_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(SHAPES.read_text("utf-8"))
    content["text_config"]["vocab_size"] = 50304
    (tmp_path / "hub.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setitem(loading.SHAPES, "hub", tmp_path / "hub.json")
    model = load_blip2("hub", pretrained=False, device="meta").model
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_744_761_856


def test_real_shapes_have_no_weights() -> None:
    with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.NAME is 'blip2_opt_2_7b'.*tiny_blip2"):
        load_blip2("blip2_opt_2_7b")


def test_sizes_at_the_real_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(SHAPES.read_text("utf-8"))
    content["vision_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    content["qformer_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    content["text_config"] |= {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    content["text_config"]["num_attention_heads"] = 2
    (tmp_path / "narrow.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setitem(loading.SHAPES, "narrow", tmp_path / "narrow.json")

    def load(side_px: int | None, interpolate: bool) -> loading.LoadedBlip2:
        return load_blip2("narrow", pretrained=False, input_size_px=side_px, interpolate_pos=interpolate)

    for interpolate in (False, True):
        with pytest.raises(ValueError, match="INPUT.SIZE is 384 px.*378 or 392"):
            load(384, interpolate)
    with pytest.raises(ValueError, match="INTERPOLATE_POS True"):
        load(364, False)
    from trainers.gated_blip2.model import GatedBlip2Model

    for side_px, interpolate, n_tokens in ((None, False, 257), (224, True, 257), (364, True, 677)):
        loaded = load(side_px, interpolate)
        tokens = GatedBlip2Model(loaded).encode_images(torch.randn(1, 3, loaded.view.side_px, loaded.view.side_px))
        assert loaded.n_tokens == n_tokens and tokens.shape == (1, n_tokens, 16)


def test_all_problems_of_a_folder_are_reported_together(copy: Path) -> None:
    for name in ("model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        (copy / name).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 problem\(s\)") as found:
        load_blip2(str(copy))
    said = str(found.value)
    assert "no preprocessor_config.json" in said and "no tokenizer.json" in said
    assert "pickles (pytorch_model.bin), which are not read" in said


def test_other_models_are_refused(copy: Path) -> None:
    edit(copy / "config.json", model_type="llava")
    with pytest.raises(ValueError, match="model_type is 'llava'; expected 'blip-2'"):
        load_blip2(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="it has no config.json"):
        load_blip2(str(copy))


def test_other_language_models_are_refused(copy: Path) -> None:
    edit(copy / "config.json", text_config={"model_type": "t5"})
    with pytest.raises(ValueError, match="its language model is 't5'; expected 'opt'"):
        load_blip2(str(copy))


def test_incomplete_weights_are_refused(copy: Path) -> None:
    edit(copy / "config.json", num_query_tokens=7)
    with pytest.raises(ValueError, match=r"shape of query_tokens: stored \(1, 4, 32\), expected \(1, 7, 32\)"):
        load_blip2(str(copy))


@pytest.mark.parametrize(("package", "version"), [("torch", "2.8.1"), ("transformers", "5.9.2")])
def test_old_versions_are_refused(monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    check_versions()
    monkeypatch.setattr(getattr(loading, package), "__version__", version)
    with pytest.raises(RuntimeError, match=rf"{package} {version} \(expected [0-9.]+ or newer\); remedy: pip install -U"):
        check_versions()


def test_shipped_model_loads_and_is_small() -> None:
    loaded = load_blip2("tiny_blip2")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) <= 2_500_000
    assert (loaded.view.side_px, loaded.n_tokens, loaded.n_queries) == (64, 65, 8)
    assert sum(file.stat().st_size for file in (ASSETS / "tiny_blip2").iterdir()) <= 5 * 2**20


def test_stand_in_tokenizer_has_the_ids_of_opt() -> None:
    tokenizer = build_stand_in_tokenizer(read_config(SHAPES))
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1)
    assert tokenizer.encode("\n", add_special_tokens=False) == [50118]
    text = "Who painted “it”?"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text and 50265 not in ids and max(ids) < 50272
    small = read_config(SHAPES)
    small.text_config.vocab_size = 100
    with pytest.raises(ValueError, match="the vocabulary has 100 rows"):
        build_stand_in_tokenizer(small)

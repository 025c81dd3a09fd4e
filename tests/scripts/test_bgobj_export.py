"""Exported models say what the trained one says, in the libraries they are for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_world import Built, build
from llava_folders import write_llava
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bgobj_export  # noqa: E402

from trainers.bgobj_llava.storage import export  # noqa: E402
from trainers.bgobj_llava.model.encode import SplitBatch  # noqa: E402
from trainers.bgobj_llava.storage.loading import load_llava  # noqa: E402

LORA = {"TRAIN__SCOPE": "lora", "LORA__R": 4}
QUESTION = "how many objects are there?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("export") / "base")


@pytest.fixture(scope="module")
def lora_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    """A model whose LoRA, projector and separators have learned, and its run folder."""
    run = tmp_path_factory.mktemp("lora_run")
    built = build(base, **LORA)
    built.save(run, 1)
    built.disturb()
    built.save(run, 2)
    return built, run


def call(*words: Any) -> None:
    bgobj_export.main([str(word) for word in words])


def fails(*words: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        call(*words)
    return str(caught.value.code)


def some_images(built: Built) -> torch.Tensor:
    side = built.model.info.side_px
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def stock_logits(built: Built, model: Any) -> torch.Tensor:
    text = built.encoder.encode([(QUESTION, None)])
    return model(**built.model.stock_inputs(some_images(built), [text])).logits


@torch.no_grad()
def test_a_plain_llava_says_the_same(lora_run: tuple[Built, Path], tmp_path: Path, capsys) -> None:
    built, run = lora_run
    call(run, "--format", "hf", "-o", tmp_path / "hf")
    assert "hf, epoch 2, float32, " in capsys.readouterr().out
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert (stock_logits(built, plain) - stock_logits(built, built.model.llava)).abs().max() <= 1e-5
    # The split sequence: ids with separators, and our image tokens in the places of the image token.
    objects = torch.arange(built.model.info.n_patches)[None] % 5 < 2
    text = built.encoder.encode([(QUESTION, None)])
    expected = built.model(some_images(built), SplitBatch.of(objects), [text])[0]
    rows = built.model.build_segments(built.model.encode(some_images(built), SplitBatch.of(objects))[0], text).whole
    embeds = plain.get_input_embeddings()(rows.ids)
    image, mask = rows.ids == built.model.info.image_id, torch.ones(1, len(rows))
    embeds[image] = rows.embeds[image]
    logits = plain(inputs_embeds=embeds[None], attention_mask=mask, position_ids=rows.positions[None]).logits
    assert (logits[0] - expected).abs().max() <= 1e-5
    assert (expected - stock_logits(built, plain)[0, -1]).abs().max() > 1e-2  # the split changes something at all


def test_separators_are_rows_of_the_embedding_and_never_generated(lora_run: tuple[Built, Path], tmp_path: Path) -> None:
    built, run = lora_run
    call(run, "--format", "hf", "-o", tmp_path / "hf")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    ids = list(built.model.info.separator_ids.values())
    assert torch.equal(plain.get_input_embeddings().weight[ids], built.model.separators.table.detach())
    assert set(ids) <= set(plain.generation_config.suppress_tokens)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.get_vocab() == built.model.tokenizer.get_vocab()
    text = f"USER: {processor.image_token}\n{QUESTION} ASSISTANT:"
    inputs = processor(text=text, images=Image.new("RGB", (90, 40), (200, 30, 30)), return_tensors="pt")
    assert (inputs["input_ids"] == built.model.info.image_id).sum() == built.model.info.n_patches
    assert inputs["pixel_values"][0, :, 0, 0].abs().max() < 0.02  # padded in the mean colour, as in training
    assert plain.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert load_llava(str(tmp_path / "hf")).side_px == built.model.info.side_px


def test_an_earlier_epoch(lora_run: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    call(lora_run[1], "--epoch", 1, "--format", "hf", "-o", tmp_path / "hf")
    before, after = (load_llava(str(folder)).model for folder in (base, tmp_path / "hf"))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(before.state_dict()[name], after.state_dict()[name])


def test_peft_reads_the_adapter(lora_run: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    built, run = lora_run
    call(run, "--format", "peft", "-o", tmp_path / "peft")
    model = PeftModel.from_pretrained(load_llava(str(base)).model, tmp_path / "peft").eval()
    assert (stock_logits(built, model) - stock_logits(built, built.model.llava)).abs().max() <= 1e-5
    rows = model.get_input_embeddings()(torch.tensor(list(built.model.info.separator_ids.values())))
    assert torch.allclose(rows, built.model.separators.table, atol=1e-6)
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in built.parameters.values())


def test_composition(lora_run: tuple[Built, Path], tmp_path: Path) -> None:
    from trainers.bgobj_llava.storage.composition import load_composition

    built, run = lora_run
    call(run, "--format", "composition", "-o", tmp_path / "out")
    again = load_composition(tmp_path / "out")
    assert type(again.model).from_pretrained(tmp_path / "out").info == built.model.info
    for name, parameter in built.parameters.items():
        assert torch.equal(again.parameters[name], parameter), name


def test_half_precision(lora_run: tuple[Built, Path], tmp_path: Path, capsys) -> None:
    call(lora_run[1], "--format", "hf", "--dtype", "bfloat16", "-o", tmp_path / "hf")
    assert "bfloat16" in capsys.readouterr().out
    assert {value.dtype for value in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["hf", "peft", "composition"])
def test_the_card_names_all_licences(form: str, base: Path, tmp_path: Path) -> None:
    build(base, DET__BACKEND="ultralytics").save(tmp_path / "run")
    call(tmp_path / "run", "--format", form, "-o", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for part in ("code: Apache-2.0", "base weights: ", "AGPL-3.0", str(base), "from_pretrained"):
        assert part in card


# --- what cannot be exported --------------------------------------------------------------------------------------------


def test_the_command_offers_what_there_is() -> None:
    assert bgobj_export.FORMATS == export.FORMATS


def test_what_a_plain_llava_cannot_hold(base: Path, tmp_path: Path) -> None:
    build(base, TRAIN__SCOPE="fusion_projector", FUSION__LAYERS=1, PROJECTOR="separate").save(tmp_path / "run")
    for form, count in (("hf", 2), ("peft", 3)):
        message = fails(tmp_path / "run", "--format", form, "-o", tmp_path / "out")
        assert f"{count} problem(s)" in message
        assert "TRAINER.BGOBJLLAVA.PROJECTOR is 'separate'" in message
        assert "TRAINER.BGOBJLLAVA.FUSION.LAYERS is 1" in message
    assert not (tmp_path / "out").exists()
    call(tmp_path / "run", "--format", "composition", "-o", tmp_path / "out")


def test_files_that_say_something_else_are_not_kept(lora_run: tuple[Built, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("trainers.bgobj_llava.storage.export.merge_lora", lambda model: None)
    assert "logits of the exported model differ by" in fails(lora_run[1], "--format", "hf", "-o", tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_output_and_run_that_cannot_be(lora_run: tuple[Built, Path], tmp_path: Path) -> None:
    assert f"{tmp_path} exists" in fails(lora_run[1], "--format", "hf", "-o", tmp_path)
    assert "has no adapter; present: none" in fails(tmp_path, "--format", "hf", "-o", tmp_path / "x")
    assert "has no adapter of epoch 7" in fails(lora_run[1], "--epoch", 7, "--format", "hf", "-o", tmp_path / "x")


def test_a_base_that_has_moved(lora_run: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(lora_run[1], tmp_path / "run"))
    record = json.loads((run / "adapter" / "last" / "adapter.json").read_text("utf-8"))
    record["base"]["id"] = str(tmp_path / "gone")
    (run / "adapter" / "last" / "adapter.json").write_text(json.dumps(record), encoding="utf-8")
    assert "there is no folder" in fails(run, "--format", "composition", "-o", tmp_path / "out")
    call(run, "--format", "composition", "--base", base, "-o", tmp_path / "out")

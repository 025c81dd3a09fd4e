"""Every kind of name, the reports, and one clear message for whatever is no LLaVA."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from llava_folders import edit_config, write_llava
from safetensors.torch import load_file, save_file
from tiny_llavas import random_llava
from transformers import CLIPImageProcessor

from trainers import model_folders
from trainers.bgobj_llava.storage import loading
from trainers.bgobj_llava.storage.loading import load_llava


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava") / "base")


@pytest.fixture
def spoiled(llava_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(llava_folder, tmp_path / "spoiled"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 sets when the hub's client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_gives_the_stored_model_frozen(llava_folder: Path) -> None:
    loaded = load_llava(str(llava_folder))
    expected, tokenizer = random_llava()
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (loaded.side_px, loaded.patch_px, loaded.fill_rgb) == (56, 14, (122, 116, 104))
    assert loaded.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert loaded.preprocessing["std"] == list(loaded.std)


@pytest.mark.parametrize(("attn", "tower"), [("eager", "eager"), ("sdpa", "sdpa")])
def test_dtype_and_attention(attn: str, tower: str, llava_folder: Path) -> None:
    model = load_llava(str(llava_folder), dtype=torch.bfloat16, attn=attn).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == attn
    assert model.config.vision_config._attn_implementation == tower


def test_report_counts_what_was_read(llava_folder: Path) -> None:
    report = load_llava(str(llava_folder)).report
    assert [part.part for part in report.parts] == ["vision_tower", "multi_modal_projector", "lm_head", "language_model"]
    assert sum(part.loaded for part in report.parts) == len(random_llava()[0].state_dict())
    assert {tuple(part.files) for part in report.parts} == {("model.safetensors",)}
    assert not any(part.missing or part.unexpected or part.random for part in report.parts)


def test_missing_and_unexpected_tensors_are_reported(spoiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = load_file(spoiled / "model.safetensors")
    lost = next(name for name in state if "multi_modal_projector.linear_1.bias" in name)
    save_file({**{name: value for name, value in state.items() if name != lost}, "lm_head.strange": torch.ones(1)},
              spoiled / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    report = load_llava(str(spoiled)).report
    parts = {part.part: part for part in report.parts}
    assert parts["multi_modal_projector"].missing == ["model.multi_modal_projector.linear_1.bias"]
    assert (parts["multi_modal_projector"].random, parts["multi_modal_projector"].loaded) == (1, 3)
    assert parts["lm_head"].unexpected == ["lm_head.strange"]
    with caplog.at_level(logging.WARNING, "trainers"):
        report.log()
    assert "1 random (model.multi_modal_projector.linear_1.bias)" in caplog.text
    assert "vision_tower" not in caplog.text


def test_random_weights_are_said_loudly(llava_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    loaded = load_llava(str(llava_folder), pretrained=False)
    assert "RANDOM WEIGHTS" in caplog.text
    assert all(part.loaded == 0 and part.random for part in loaded.report.parts)
    assert loaded.base.fingerprint != load_llava(str(llava_folder)).base.fingerprint
    torch.manual_seed(1)
    assert load_llava(str(llava_folder), pretrained=False).base.fingerprint == loaded.base.fingerprint


def test_random_weights_need_no_weight_file(spoiled: Path) -> None:
    (spoiled / "model.safetensors").unlink()
    assert load_llava(str(spoiled), pretrained=False).side_px == 56


def test_fingerprint_is_of_the_bytes_and_read_once(llava_folder: Path, tmp_path: Path, monkeypatch) -> None:
    copy = Path(shutil.copytree(llava_folder, tmp_path / "elsewhere"))
    other = write_llava(tmp_path / "other", seed=1)
    files = [model_folders.find_weight_files(folder) for folder in (llava_folder, copy, other)]
    first, same, different = map(model_folders.hash_weight_files, files)
    assert first == same != different
    monkeypatch.setattr("clip_ext.file_hashes.hash_file", lambda path: pytest.fail("read again"))
    assert model_folders.hash_weight_files(files[0]) == first


def test_sharded_weights(spoiled: Path) -> None:
    model, _ = random_llava()
    (spoiled / "model.safetensors").unlink()
    model.save_pretrained(spoiled, max_shard_size="300KB")
    loaded = load_llava(str(spoiled))
    assert len(model_folders.find_weight_files(spoiled)) > 1
    assert sum(part.loaded for part in loaded.report.parts) == len(model.state_dict())
    model_folders.find_weight_files(spoiled)[0].unlink()
    with pytest.raises(FileNotFoundError, match="that are not there: model-00001"):
        load_llava(str(spoiled))


def test_all_problems_of_a_folder_in_one_message(spoiled: Path) -> None:
    edit_config(spoiled, vision_feature_layer=[-2, -3], vision_config__image_size=60, vision_feature_select_strategy="full")
    (spoiled / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="5 problem") as caught:
        load_llava(str(spoiled))
    message = str(caught.value)
    for part in (
        "image_size 60 is not a multiple of patch_size 14", r"vision_feature_layer is [-2, -3]; expected one layer",
        "vision_feature_select_strategy is 'full'", "makes images of 56 x 56 px; its tower wants 60", "no tokenizer.json",
    ):  # fmt: skip
        assert part in message


def test_another_kind_of_model(spoiled: Path) -> None:
    edit_config(spoiled, model_type="llava_next")
    with pytest.raises(ValueError, match="model_type is 'llava_next'; expected 'llava'"):
        load_llava(str(spoiled))


def test_pickled_weights_are_not_read(spoiled: Path) -> None:
    (spoiled / "model.safetensors").rename(spoiled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"its weights are pickles \(pytorch_model.bin\)"):
        load_llava(str(spoiled))


def test_folders_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MODEL.BACKBONE.NAME is .*there is no folder"):
        load_llava(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="it has no config.json"):
        load_llava(str(tmp_path))


def test_hub_ids_offline(offline: None) -> None:
    with pytest.raises(OSError, match="not to be had from the hub"):
        load_llava("nobody/no-such-llava")


def test_hub_id_becomes_a_folder_without_pickles(llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, **options: object) -> str:
        asked.update(name=name, **options)
        return str(llava_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert loading.find_folder("llava-hf/llava-1.5-7b-hf", "main") == llava_folder
    assert (asked["name"], asked["revision"]) == ("llava-hf/llava-1.5-7b-hf", "main")
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in asked["allow_patterns"])


def test_processor_of_its_own_colours(spoiled: Path) -> None:
    size = {"height": 56, "width": 56}
    CLIPImageProcessor(crop_size=size, image_mean=[0.5, 0.25, 0.0], image_std=[1.0, 0.5, 2.0]).save_pretrained(spoiled)
    loaded = load_llava(str(spoiled))
    assert (loaded.mean, loaded.std, loaded.fill_rgb) == ((0.5, 0.25, 0.0), (1.0, 0.5, 2.0), (127, 63, 0))

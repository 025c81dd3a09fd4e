"""A run folder becomes a trainer without its data, or one clear message."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image
from prediction_calls import call, edit_record, fails
from tiny_world import CLASSNAMES, IMAGE_SIZE_PX, train_run

from trainers import device_views
from trainers.config_merge import Setting
from trainers.prediction import run as prediction_run


def test_missing_run_and_files_of_a_run(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.csv"
    output.write_text("older", encoding="utf-8")
    fails(capsys, f"there is no run folder {tmp_path / 'none'}", tmp_path / "none", photos, output)
    fails(capsys, "it has no config.yaml", photos, photos, output)
    edit_record(copied_run, data={})
    fails(capsys, "lists no classes", copied_run, photos, output)
    (copied_run / "run.json").unlink()
    fails(capsys, "it has no run.json", copied_run, photos, output)


def test_missing_checkpoints(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.csv"
    fails(capsys, "present: model.pth.tar-1 (give --load-epoch 1)", copied_run, photos, output, "--load-epoch", "7")
    shutil.rmtree(copied_run / "adapt")
    fails(capsys, "has no checkpoint yet: expected adapt/model.pth.tar-*", copied_run, photos, output)


def test_epoch_of_a_trainer_without_weights(trained_run, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained_run("ZeroshotCLIP")
    fails(capsys, "--load-epoch 1, but ZeroshotCLIP trains nothing", folder, photos, tmp_path / "out.csv", "--load-epoch", "1")


def test_other_classes_than_the_checkpoints(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    edit_record(copied_run, data={"classes": ["red", "green"]})
    message = "does not fit its configuration and the 2 classes of run.json (red, green)"
    fails(capsys, message, copied_run, photos, tmp_path / "out.csv")


def test_wrong_settings_are_reported_together(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = ["TRAINER.LAFTER.UNSURE_ABOVE", "1", "TRAINER.NAME", "Lafter"]
    fails(capsys, "2 problem(s) in the configuration", copied_run, photos, tmp_path / "out.csv", *words)
    words = ["TRAINER.LAFTER.UNSURE_BELOW", "1.5"]
    fails(capsys, "UNSURE_BELOW is 1.5; expected a value in [0, 1]", copied_run, photos, tmp_path / "out.csv", *words)


def test_clip_that_is_not_at_hand(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = ["MODEL.BACKBONE.NAME", str(tmp_path / "none.safetensors")]
    fails(capsys, "none.safetensors", copied_run, photos, tmp_path / "out.csv", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_device_that_is_not_there(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "--device cuda, but PyTorch finds no GPU", copied_run, photos, tmp_path / "out.csv", "--device", "cuda")


def test_images_never_go_into_a_cache(copied_run: Path, photos: Path, tmp_path: Path) -> None:
    words = ["TRAINER.LAFTER.CACHE_IMAGES", "ram", "TRAINER.LAFTER.CACHE_MAX_GB", "1e-9"]
    assert call(copied_run, photos, tmp_path / "out.csv", *words) == 0


def test_the_stand_in_knows_the_classes_and_no_image(copied_run: Path) -> None:
    loaded = prediction_run.read_run(copied_run)
    trainer, _ = prediction_run.load_trainer(loaded)
    assert trainer.classnames == list(CLASSNAMES)
    assert trainer.clip.info.image_size_px == IMAGE_SIZE_PX
    assert [item.label for item in trainer.dm.dataset.test] == [-1]


def test_the_data_sets_of_this_process_stay_registered(trained_run, photos: Path, tmp_path: Path) -> None:
    before = DATASET_REGISTRY.get("TinyColours")
    call(trained_run("LaFTer")[0], photos, tmp_path / "out.csv")
    assert DATASET_REGISTRY.get("TinyColours") is before


def test_unfinished_run_is_used_with_a_note(copied_run: Path, photos: Path, tmp_path: Path, caplog) -> None:
    edit_record(copied_run, status="failed")
    assert call(copied_run, photos, tmp_path / "out.csv") == 0
    assert "has not finished (status failed)" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_run_in_half_precision_is_used_in_fp32_on_a_cpu(copied_run: Path, photos: Path, tmp_path: Path, caplog) -> None:
    assert call(copied_run, photos, tmp_path / "out.csv", "TRAINER.LAFTER.PREC", "amp") == 0
    assert "PREC amp needs a GPU; fp32 is used" in caplog.text


def test_weights_that_cannot_be_fetched(copied_run: Path, photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def fetch(cfg: object) -> None:
        raise RuntimeError("could not fetch the weights")

    monkeypatch.setattr(prediction_run, "build_trainer", fetch)
    fails(capsys, "cannot build LaFTer on local-dir:", copied_run, photos, tmp_path / "out.csv")


def test_text_only_run_is_its_epoch_zero(tiny_world: Path, tmp_path: Path) -> None:
    trained = train_run(tiny_world, tmp_path / "run", "LaFTer", {".PHASE": "text_only"})
    trainer, checkpoint = prediction_run.load_trainer(prediction_run.read_run(tmp_path / "run"))
    images = torch.stack([trained.clip.preprocess(Image.open(item.impath)) for item in trained.dm.dataset.test])
    trained.set_model_mode("eval")
    assert checkpoint == "model.pth.tar-0"
    assert torch.equal(*(model.model_inference(images).as_subclass(torch.Tensor) for model in (trainer, trained)))


def test_a_run_with_views_made_by_kornia_is_used_where_kornia_is_missing(copied_run: Path, monkeypatch) -> None:
    monkeypatch.setattr(device_views.importlib.util, "find_spec", lambda _: None)
    setting = Setting("TRAINER.LAFTER.AUGMENT_DEVICE", "gpu", "stored by a run on a GPU")
    loaded = prediction_run.read_run(copied_run, [setting])
    trainer, _ = prediction_run.load_trainer(loaded)
    assert trainer.num_classes == len(CLASSNAMES)

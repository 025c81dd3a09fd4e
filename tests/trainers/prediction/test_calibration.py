"""The temperature of confidences: its optimum, which labels it may read, and which predictions use it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from prediction_calls import call, edit_record, fails, read_jsonl
from tiny_world import train_run

import predict
from trainers.prediction import calibration as prediction_calibration
from trainers.prediction import run as prediction_run


@pytest.fixture(scope="module")
def supervised_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised") / "run"
    train_run(tiny_world, folder, "LaFTer", {".MODE": "supervised"})
    return folder


@pytest.fixture
def supervised(supervised_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(supervised_run, tmp_path / "supervised"))


def calibrate(run: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--model-dir", str(run), "--calibrate", *words])
    return stop.value.code


def test_temperature_minimises_the_nll() -> None:
    # Softmax of (2 / T, 0) is best where it says what is true in three of four cases: 2 / T = ln 3.
    logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    assert prediction_calibration.minimise_nll(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)
    for labels in ([0, 0, 0, 0], [0, 1, 1, 1]):  # always right, mostly wrong
        with pytest.raises(ValueError, match="do not determine a temperature"):
            prediction_calibration.minimise_nll(logits, torch.tensor(labels))


def test_calibrated_confidences_are_used_by_later_predictions(
    supervised: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    call(supervised, photos, tmp_path / "before.jsonl")
    seen = torch.tensor([[2.0, 0.0, -900.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]), 1.0
    monkeypatch.setattr(prediction_calibration, "_collect", lambda trainer: seen)
    capsys.readouterr()
    assert calibrate(supervised) == 0
    assert "temperature 1.82 from 4 validation images, NLL 0.62" in capsys.readouterr().out
    stored = json.loads((supervised / "calibration.json").read_text("utf-8"))
    assert (stored["split"], stored["checkpoint"], stored["images"]) == ("val", "model.pth.tar-1", 4)
    assert stored["nll"] < stored["nll_before"]

    call(supervised, photos, tmp_path / "after.jsonl")
    for plain, fitted in zip(read_jsonl(tmp_path / "before.jsonl"), read_jsonl(tmp_path / "after.jsonl"), strict=True):
        assert (plain["calibrated"], fitted["calibrated"]) == (False, True)
        assert plain["label"] == fitted["label"]
        assert plain["distribution"] == fitted["distribution"]
        logits = torch.tensor(list(plain["distribution"].values()), dtype=torch.double).log()
        expected = (logits / stored["temperature"]).softmax(dim=0).max().item()
        assert fitted["confidence"] == pytest.approx(expected, abs=1e-4)
    assert json.loads((tmp_path / "after.jsonl.json").read_text("utf-8"))["calibrated_temperature"] == stored["temperature"]

    weights = torch.load(supervised / "adapt" / "model.pth.tar-1", weights_only=True)
    torch.save(weights | {"val_result": 50.0}, supervised / "adapt" / "model-best.pth.tar")
    call(supervised, photos, tmp_path / "other.jsonl")
    assert not any(row["calibrated"] for row in read_jsonl(tmp_path / "other.jsonl"))
    assert "calibration.json belongs to other weights (model.pth.tar-1) and is not used" in caplog.text


def test_calibration_reads_the_validation_split_of_the_run(supervised: Path) -> None:
    loaded = prediction_run.read_run(supervised)
    trainer, _ = prediction_run.load_trainer(loaded, with_data=True)
    logits, labels, before = prediction_calibration._collect(trainer)
    assert labels.tolist() == [item.label for item in trainer.dm.dataset.val]
    assert (tuple(logits.shape), before) == ((3, 3), 1.0)


def test_calibration_refuses_labels_it_must_not_read_and_other_data(
    copied_run: Path, supervised: Path, tiny_world: Path, tmp_path: Path, capsys
) -> None:
    assert calibrate(copied_run) == 2
    assert "LaFTer has not learned from labels" in capsys.readouterr().err
    edit_record(supervised, data=json.loads((supervised / "run.json").read_text("utf-8"))["data"] | {"hash": "another"})
    assert calibrate(supervised) == 2
    assert "are not those of" in capsys.readouterr().err
    assert not (supervised / "calibration.json").exists()


def test_unreadable_calibration_is_named(supervised: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (supervised / "calibration.json").write_text("{}", encoding="utf-8")
    fails(capsys, "calibration.json is not readable", supervised, photos, tmp_path / "out.csv")



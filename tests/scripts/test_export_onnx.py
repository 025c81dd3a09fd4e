"""scripts/export_onnx.py: the file says what the trained run says, whatever the batch, and carries what a user needs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from tiny_world import CLASSNAMES, IMAGE_SIZE_PX, test_logits
from torch import Tensor

import trainers
from scripts import export_onnx
from trainers.base import CLIPTrainer

onnx = pytest.importorskip("onnx")


def test_images(trainer: Any) -> Tensor:
    return torch.cat([batch["img"] for batch in trainer.test_loader])


test_images.__test__ = False  # a helper, whatever its name suggests to pytest


CLIP_TRAINERS = [name for name in trainers.__all__ if issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)]


@pytest.mark.parametrize("name", [name for name in trainers.__all__ if name not in CLIP_TRAINERS])
def test_a_trainer_without_a_clip_is_refused(name: str, trained_run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {name} has no CLIP image side to export"):
        export_onnx.main([str(trained_run(name)[0]), "-o", str(tmp_path / "model.onnx")])
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("name", CLIP_TRAINERS)
def test_exported_logits_are_those_of_the_run(name: str, trained_run, tiny_world: Path, tmp_path: Path, capsys) -> None:
    folder, trainer = trained_run(name)
    file = tmp_path / "model.onnx"
    export_onnx.main([str(folder), "-o", str(file), "--images", str(tiny_world / "colours" / "test")])
    _, runner = export_onnx.find_runner(file)
    expected, images = test_logits(trainer).as_subclass(Tensor), test_images(trainer)
    for count in (1, 6):
        assert (runner(images[:count]) - expected[:count]).abs().max() < 1e-4 * expected.abs().max().clamp_min(1)
    printed = capsys.readouterr().out
    assert f"model.onnx: {name}, " in printed
    assert "on 4 random images, " in printed
    assert "on 6 real images" in printed


def test_metadata_say_how_to_use_the_file(trained_run, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    folder, trainer = trained_run("LaFTer")
    export_onnx.main([str(folder), "-o", str(file)])
    model = onnx.load(str(file))
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["classes"]) == list(CLASSNAMES)
    assert int(props["image_size_px"]) == IMAGE_SIZE_PX
    assert tuple(json.loads(props["mean"])) == trainer.clip.info.mean
    assert tuple(json.loads(props["std"])) == trainer.clip.info.std
    assert props["interpolation"] == trainer.clip.info.interpolation
    assert float(props["temperature"]) == 1.0
    assert min(entry.version for entry in model.opset_import if not entry.domain) >= 17
    (shape,) = [[size.dim_param or size.dim_value for size in entry.type.tensor_type.shape.dim] for entry in model.graph.input]
    assert shape == ["batch", 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX]


def test_blocks_that_no_logit_depends_on_are_left_out(trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained_run("LaFTer")
    run = export_onnx.read_run(trained_run("LaFTer")[0])

    def read_block_six(images: Tensor) -> Tensor:
        return trainer.student.driver(images, taps=[6]).taps[6][:, :3]

    export_onnx.export(trainer, run, tmp_path / "whole.onnx")
    monkeypatch.setattr(trainer, "model_inference", read_block_six)
    export_onnx.export(trainer, run, tmp_path / "half.onnx")
    blocks = []
    for name in ("whole.onnx", "half.onnx"):
        weights = [entry.name for entry in onnx.load(str(tmp_path / name)).graph.initializer if "resblocks." in entry.name]
        blocks.append({weight.split("resblocks.")[1].split(".")[0] for weight in weights})
    assert blocks == [{str(number) for number in range(12)}, {str(number) for number in range(6)}]


def test_without_onnxruntime_the_reference_compares(
    trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    export_onnx.main([str(trained_run("LaFTer")[0]), "-o", str(tmp_path / "model.onnx")])
    printed = capsys.readouterr().out
    assert "(onnx's reference evaluator; largest logit" in printed
    assert "no real images were compared" in printed


def test_a_file_that_says_something_else_is_not_kept(trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained_run("LaFTer")
    shifted = ("shifted", lambda images: trainer.model_inference(images).as_subclass(Tensor) + 0.1)
    monkeypatch.setattr(export_onnx, "find_runner", lambda path: shifted)
    with pytest.raises(SystemExit, match="differ by .*no file was written"):
        export_onnx.main([str(trained_run("LaFTer")[0]), "-o", str(tmp_path / "model.onnx")])
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_ends_with_a_message(trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = str(trained_run("LaFTer")[0])
    with pytest.raises(SystemExit):
        export_onnx.main([folder, "-o", str(tmp_path / "model.pt")])
    assert "its name must end in .onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: there is no run folder"):
        export_onnx.main([str(tmp_path / "none"), "-o", str(tmp_path / "model.onnx")])
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="the package onnx is missing; pip install onnx onnxruntime"):
        export_onnx.main([folder, "-o", str(tmp_path / "model.onnx")])

"""Corners of resuming; `test_runs_across_engines.py` has the runs killed at every epoch boundary."""

import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
import toy_world
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import load_checkpoint
from torch import nn

RECIPE = {
    "OPTIM.MAX_EPOCH": 6,
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-3,
    "TRAIN.CHECKPOINT_FREQ": 1,
    "TEST.FINAL_MODEL": "best_val",
}
SHORT = {"TRAIN.CHECKPOINT_FREQ": 1, "TEST.NO_TEST": True}


@TRAINER_REGISTRY.register()
class ResumeTwoModels(TRAINER_REGISTRY.get("NoisyToy")):
    """Registers a second model, so that one can fall behind, and keeps state of its own."""

    def build_model(self) -> None:
        super().build_model()
        self.register_model("second", nn.Linear(1, 1))
        self.seen = 0

    def forward_backward(self, batch):
        self.seen += len(batch["label"])
        return super().forward_backward(batch)

    def extra_state(self) -> dict:
        return {"seen": self.seen}

    def load_extra_state(self, state: dict) -> None:
        self.seen = state["seen"]


@TRAINER_REGISTRY.register()
class ResumeGreedy(TRAINER_REGISTRY.get("NoisyToy")):
    """Draws from all generators after the base class has resumed."""

    def before_train(self) -> None:
        super().before_train()
        random.random(), np.random.rand(), torch.rand(1)


def assert_same_run(whole, part, first_epoch: int) -> None:
    """Compare bit by bit, the history from `first_epoch` on."""
    assert [entry for entry in whole.lrs if entry[0] >= first_epoch] == part.lrs
    assert [entry for entry in whole.losses if entry[0] >= first_epoch] == part.losses
    assert whole.best_result == part.best_result
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name


def test_generators_are_restored_after_before_train_of_a_subclass(make_toy_cfg, tmp_path):
    recipe = {**RECIPE, "OPTIM.MAX_EPOCH": 3}
    whole = toy_world.train_once(make_toy_cfg("ResumeGreedy", **recipe, OUTPUT_DIR=str(tmp_path / "whole")))
    cfg = make_toy_cfg("ResumeGreedy", **recipe)
    toy_world.train_once(cfg, stop_before_epoch=2)
    assert_same_run(whole, toy_world.train_once(cfg, seed=9), 2)


def test_run_resumes_from_the_best_model_when_it_is_the_last_file(make_toy_cfg, tmp_path, capsys):
    recipe = {**RECIPE, "TRAIN.CHECKPOINT_FREQ": 0}
    whole = toy_world.train_once(make_toy_cfg(**recipe, OUTPUT_DIR=str(tmp_path / "whole")))
    cfg = make_toy_cfg(**recipe)
    toy_world.train_once(cfg, stop_before_epoch=5)
    pointer = tmp_path / "run/toy/checkpoint"
    assert pointer.read_text() == "model-best.pth.tar\n"
    start = load_checkpoint(str(tmp_path / "run/toy/model-best.pth.tar"))["epoch"]
    assert_same_run(whole, toy_world.train_once(cfg, seed=9), start)


def test_explicit_resume_folder_is_read_and_output_dir_written(make_toy_cfg, tmp_path, capsys):
    first = make_toy_cfg(**SHORT, OUTPUT_DIR=str(tmp_path / "first"))
    toy_world.train_once(first, stop_before_epoch=1)
    second = make_toy_cfg(**SHORT, OUTPUT_DIR=str(tmp_path / "second"), RESUME=str(tmp_path / "first"))
    toy_world.train_once(second)
    assert f"Found checkpoint at {tmp_path / 'first'} (will resume training)" in capsys.readouterr().out
    assert (tmp_path / "second/toy/checkpoint").read_text() == "model.pth.tar-2\n"
    assert not (tmp_path / "first/toy/model.pth.tar-2").exists()


def test_extra_state_of_a_trainer_comes_back(make_toy_cfg):
    cfg = make_toy_cfg("ResumeTwoModels", **SHORT)
    toy_world.train_once(cfg, stop_before_epoch=1)
    assert toy_world.train_once(cfg).seen == 2 * 12


@pytest.mark.parametrize("written", ["toy/model.pth.tar-2", "toy/checkpoint"])
def test_crash_before_replacing_a_file_leaves_the_last_epoch_usable(make_toy_cfg, tmp_path, monkeypatch, written):
    cfg = make_toy_cfg(**{**SHORT, "OPTIM.MAX_EPOCH": 3})
    whole = toy_world.train_once(make_toy_cfg(**{**SHORT, "OPTIM.MAX_EPOCH": 3, "OUTPUT_DIR": str(tmp_path / "whole")}))
    replace, targets = os.replace, []

    def replace_or_die(source, target):
        targets.append(str(target))
        if str(target) == str(tmp_path / "run" / written) and (tmp_path / "run/toy/model.pth.tar-1").exists():
            if len(targets) > 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)
    toy_world.train_once(cfg)
    monkeypatch.undo()
    assert (tmp_path / "run/toy/checkpoint").read_text() == "model.pth.tar-1\n"
    assert load_checkpoint(str(tmp_path / "run/toy/model.pth.tar-1"))["epoch"] == 1
    (tmp_path / "run/toy/model.pth.tar-2.tmp").write_bytes(b"torn")  # what a power cut may leave
    assert_same_run(whole, toy_world.train_once(cfg, seed=9), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"OPTIM.MAX_EPOCH": 4}, "OPTIM.MAX_EPOCH: saved 2, configured 4"),
        ({"OPTIM.LR": 0.5}, re.escape("OPTIM.LR: saved [0.02], configured [0.5]")),
        ({"OPTIM.WARMUP_EPOCH": 1, "OPTIM.WARMUP_TYPE": "constant"}, "OPTIM.WARMUP_EPOCH: saved nothing, configured 1"),
    ],
)
def test_another_schedule_is_refused_with_key_and_both_values(make_toy_cfg, change, message):
    toy_world.train_once(make_toy_cfg(**SHORT), stop_before_epoch=1)
    trainer = build_trainer(make_toy_cfg(**{**SHORT, **change}))
    before = trainer.model[2].weight.clone()
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.equal(trainer.model[2].weight, before)


def test_models_at_different_epochs_are_refused(make_toy_cfg, tmp_path):
    cfg = make_toy_cfg("ResumeTwoModels", **SHORT)
    toy_world.train_once(cfg)
    (tmp_path / "run/second/checkpoint").write_text("model.pth.tar-1\n")
    with pytest.raises(ValueError, match="toy at 2, second at 1"):
        build_trainer(cfg).train()


def test_missing_pointer_and_empty_resume_folder_are_errors(make_toy_cfg, tmp_path):
    cfg = make_toy_cfg(**SHORT)
    toy_world.train_once(cfg, stop_before_epoch=1)
    (tmp_path / "run/toy/checkpoint").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy has no pointer file `checkpoint`.*model.pth.tar-1"):
        build_trainer(cfg).train()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"RESUME is .*empty"):
        build_trainer(make_toy_cfg(RESUME=str(tmp_path / "empty"))).train()


def test_output_that_cannot_be_written_is_named(make_toy_cfg, tmp_path, monkeypatch):
    cfg = make_toy_cfg(**SHORT)
    toy_world.train_once(cfg, stop_before_epoch=1)

    def disk_full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match=r"model.pth.tar-2.*No space left"):
        build_trainer(cfg).train()
    assert (tmp_path / "run/toy/checkpoint").read_text() == "model.pth.tar-1\n"
    assert sorted(path.name for path in (tmp_path / "run/toy").iterdir()) == ["checkpoint", "model.pth.tar-1"]


def test_finished_run_is_only_tested_again(make_toy_cfg, capsys, tmp_path):
    cfg = make_toy_cfg(**{"TRAIN.CHECKPOINT_FREQ": 1})
    first = toy_world.train_once(cfg)
    shutil.copytree(tmp_path / "run/toy", tmp_path / "kept")
    again = toy_world.train_once(cfg, seed=5)
    assert again.losses == []
    assert torch.equal(first.model[2].weight, again.model[2].weight)
    assert capsys.readouterr().out.count("Evaluate on the *test* set") == 2

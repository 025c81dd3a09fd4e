"""Writing checkpoints, loading weights, and the state of a trainer inside them."""

from __future__ import annotations

import random
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dassl.utils import (
    count_num_param,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.torchtools import adjust_learning_rate, set_bn_to_eval
from torch import nn

from dassl_host.trainer_state import (
    checkpoint_state,
    collect_trainer_state,
    load_models,
    restore_rng,
    restore_trainer_state,
)


def make_trainer(**attributes):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    fields = {"_models": {"part": model}, "_optims": {"part": optimizer}, "_scheds": {"part": scheduler}}
    return SimpleNamespace(**fields, **{"max_epoch": 4, "best_result": np.float64(7.5), **attributes})


def draw() -> tuple[float, ...]:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_save_checkpoint_writes_file_pointer_and_best_copy(tmp_path, capsys):
    state = {"state_dict": OrderedDict({"module.a": torch.ones(1), "b.module.c": torch.zeros(1)}), "epoch": 3}
    save_checkpoint(state, str(tmp_path / "m"), is_best=True)
    assert list(state["state_dict"]) == ["module.a", "b.module.c"]  # the caller's dict stays as it was
    for name in ("model.pth.tar-3", "model-best.pth.tar"):
        assert list(load_checkpoint(str(tmp_path / "m" / name))["state_dict"]) == ["a", "b.module.c"]
    assert (tmp_path / "m" / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert f"Checkpoint saved to {tmp_path / 'm' / 'model.pth.tar-3'}" in capsys.readouterr().out
    save_checkpoint(state, str(tmp_path / "m"), remove_module_from_keys=False, model_name="other")
    assert "module.a" in load_checkpoint(str(tmp_path / "m" / "other"))["state_dict"]
    assert (tmp_path / "m" / "checkpoint").read_text() == "other\n"


def test_save_checkpoint_into_a_file_names_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        save_checkpoint({"state_dict": {}, "epoch": 1}, str(tmp_path / "file" / "m"))


def test_full_disk_reported_by_torch_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint({"state_dict": {}, "epoch": 1}, str(tmp_path))

    def fail(state, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="cannot write .*model.pth.tar-1"):
        save_checkpoint({"state_dict": {}, "epoch": 1}, str(tmp_path))
    assert load_checkpoint(str(tmp_path / "model.pth.tar-1"))["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.pth.tar-1"]


def test_resume_restores_model_optimizer_and_schedule(tmp_path):
    trainer = make_trainer()
    trainer._optims["part"].step()
    trainer._scheds["part"].step()
    save_checkpoint(checkpoint_state(trainer, "part", 0), str(tmp_path))
    other = make_trainer()
    parts = other._models["part"], other._optims["part"], other._scheds["part"]
    assert resume_from_checkpoint(str(tmp_path), *parts) == 1
    assert torch.equal(other._models["part"].weight, trainer._models["part"].weight)
    assert other._scheds["part"].get_last_lr() == [0.05] == [other._optims["part"].param_groups[0]["lr"]]


def test_state_keeps_best_result_and_generators(tmp_path):
    trainer = make_trainer(extra_state=lambda: {"scale": 2.0, "ema": [torch.ones(1)]})
    torch.save(collect_trainer_state(trainer), tmp_path / "state.pt")
    drawn = draw()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (tmp_path / "state.pt").stat().st_size < 20_000

    received = {}
    other = make_trainer(load_extra_state=received.update)
    restore_trainer_state(other, state)
    assert (other.best_result, type(other.best_result)) == (7.5, float) and received["scale"] == 2.0
    restore_rng(other)
    assert draw() == drawn
    restore_rng(other)  # nothing is left to restore
    assert draw() != drawn


def test_state_of_another_format_is_refused_and_none_changes_nothing():
    trainer = make_trainer()
    restore_trainer_state(trainer, None)
    restore_rng(trainer)
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        restore_trainer_state(trainer, {"format": 2})


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), {1, 2}, object()])
def test_extra_state_that_could_not_be_read_back_is_refused_at_saving(value):
    trainer = make_trainer(extra_state=lambda: {"a": [0, value]})
    with pytest.raises(TypeError, match=rf"extra_state\(\)\['a'\]\[1\] is a {type(value).__name__}"):
        collect_trainer_state(trainer)


def test_load_models_reports_value_and_lists_what_is_there(tmp_path, capsys):
    trainer = make_trainer()
    for epoch, result in ((1, None), (9, 81.25)):
        save_checkpoint(checkpoint_state(trainer, "part", epoch, result), str(tmp_path / "part"))
    other = make_trainer()
    load_models(other, str(tmp_path), epoch=10)
    assert torch.equal(other._models["part"].weight, trainer._models["part"].weight)
    load_models(other, str(tmp_path), epoch=2)
    load_models(other, "")
    printed = capsys.readouterr().out
    assert "model.pth.tar-10 to part (epoch=10, val_result=81.2)" in printed
    assert "to part (epoch=2, val_result=n/a)" in printed
    assert "Note that load_model() is skipped as no pretrained model is given" in printed
    with pytest.raises(FileNotFoundError, match=r"No model at .*model-best.pth.tar; .*\(give --load-epoch 2 or 10\)"):
        load_models(other, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No model at .*; present: no model file"):
        load_models(other, str(tmp_path / "nowhere"), epoch=1)


def test_load_pretrained_weights_takes_what_fits(tmp_path, capsys):
    weights = {"module.weight": torch.ones(1, 2), "bias": torch.ones(5), "head": torch.ones(1)}
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    model = nn.Linear(2, 1)
    load_pretrained_weights(model, str(tmp_path / "w.pth"))
    assert torch.equal(model.weight, torch.ones(1, 2))
    assert "Layers discarded due to unmatched keys or size: ['bias', 'head']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="no weight in .*w.pth fits"):
        load_pretrained_weights(nn.Conv1d(1, 1, 1, bias=False), str(tmp_path / "w.pth"))


def test_layers_are_opened_and_counted():
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    open_specified_layers(model, "head")
    assert not model["body"].weight.requires_grad and model["head"].weight.requires_grad
    assert (model["body"].training, model["head"].training) == (False, True)
    open_all_layers(model)
    assert all(param.requires_grad for param in model.parameters()) and model["body"].training
    with pytest.raises(AssertionError, match="neck is not an attribute of ModuleDict"):
        open_specified_layers(model, ["neck"])
    assert count_num_param(model) == 13
    assert count_num_param(params=[model["head"].bias, {"params": model["head"].weight}]) == 4
    with pytest.raises(ValueError, match="needs a model or parameters"):
        count_num_param()


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_init_network_weights_sets_layers_norms_and_biases(init_type):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    nn.init.constant_(model[1].weight, 5.0)
    init_network_weights(model, init_type)
    assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[1].weight, torch.ones(2)) and torch.equal(model[3].bias, torch.zeros(2))
    with pytest.raises(NotImplementedError, match="init_type is 'foo'"):
        init_network_weights(model, "foo")


def test_learning_rate_and_batch_norm_helpers():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    adjust_learning_rate(optimizer, 0.1, 40)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    adjust_learning_rate(optimizer, 0.1, 25, linear_decay=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.075)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model.apply(set_bn_to_eval)
    assert (model[0].training, model[1].training) == (False, True)

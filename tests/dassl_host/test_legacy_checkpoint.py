"""Checkpoints as upstream pickled them are read without running anything in them."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dassl_host.legacy_checkpoint import load_checkpoint


def build(schedule: str = "cosine"):
    from dassl.config import get_cfg_default
    from dassl.optim import build_lr_scheduler, build_optimizer

    optim_cfg = get_cfg_default().OPTIM
    optim_cfg.merge_from_list(["NAME", "sgd", "LR", 0.02, "LR_SCHEDULER", schedule, "STEPSIZE", (3, 5)])
    optim_cfg.merge_from_list(["MAX_EPOCH", 8, "WARMUP_EPOCH", 2, "WARMUP_TYPE", "linear"])
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, optim_cfg)
    return model, optimizer, build_lr_scheduler(optimizer, optim_cfg)


def train_epochs(model, optimizer, scheduler, epochs: int) -> list[float]:
    trace = []
    for _ in range(epochs):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        trace.append(optimizer.param_groups[0]["lr"])
    return trace


def upstream_state(model, optimizer, scheduler, epoch: int) -> dict[str, Any]:
    """Upstream's content: the scheduler's attributes, with the live successor and, in it, the optimizer."""
    attributes = {key: value for key, value in vars(scheduler).items() if key != "optimizer"}
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": attributes,
        "val_result": np.float64(87.5),
    }


@pytest.mark.parametrize("schedule", ["cosine", "multi_step"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("epoch", [1, 4])
def test_pickled_warmup_checkpoint_resumes_with_the_exact_lr(schedule, zipped, epoch, tmp_path):
    model, optimizer, scheduler = build(schedule)
    train_epochs(model, optimizer, scheduler, epoch)
    state = upstream_state(model, optimizer, scheduler, epoch)
    torch.save(state, tmp_path / f"model.pth.tar-{epoch}", _use_new_zipfile_serialization=zipped)
    (tmp_path / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / f"model.pth.tar-{epoch}", weights_only=True)

    from dassl.utils import resume_from_checkpoint

    resumed = build(schedule)
    assert resume_from_checkpoint(str(tmp_path), *resumed) == epoch
    assert torch.equal(resumed[0].weight, model.weight)
    assert train_epochs(*resumed, 6) == train_epochs(model, optimizer, scheduler, 6)
    assert torch.equal(resumed[0].weight, model.weight)
    loaded = load_checkpoint(str(tmp_path / f"model.pth.tar-{epoch}"))
    assert loaded["val_result"] == 87.5 and type(loaded["val_result"]) is float
    assert "optimizer" not in loaded["scheduler"]["successor"]


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class CallableAttack(Attack):
    """The same, standing where the pickle expects a function."""

    def __call__(self) -> None:
        """Only has to exist."""


@pytest.mark.parametrize("place", ["state_dict", "scheduler", "successor", "list", "alone"])
def test_malicious_checkpoint_runs_nothing_and_raises_naming_the_object(place, tmp_path):
    sentinel, path = tmp_path / "sentinel", tmp_path / "model.pth.tar-1"
    attack = Attack(os.system, f"touch {sentinel}")
    content = {
        "state_dict": {"state_dict": OrderedDict(weight=attack)},
        "scheduler": {"scheduler": attack},
        "successor": {"scheduler": {"successor": attack}},
        "list": {"epoch": [1, {"deep": (attack,)}]},
        "alone": attack,
    }[place]
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError, match=r"model.pth.tar-1 holds the object \w+\.system at checkpoint"):
        load_checkpoint(str(path))
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["eval", "chain", "open"])
def test_other_attacks_run_nothing(kind, tmp_path):
    sentinel, path = tmp_path / "sentinel", tmp_path / "model.pth.tar-1"
    attack = {
        "eval": Attack(eval, f"open({str(sentinel)!r}, 'w')"),
        "open": Attack(open, str(sentinel), "w"),
        "chain": Attack(CallableAttack(getattr, Attack(__import__, "os"), "system"), f"touch {sentinel}"),
    }[kind]
    torch.save({"scheduler": {"successor": attack}}, path)
    with pytest.raises(pickle.UnpicklingError, match="model.pth.tar-1"):
        load_checkpoint(str(path))
    assert not sentinel.exists()


def test_object_hidden_in_the_successor_is_dropped_unrun(tmp_path):
    sentinel = tmp_path / "sentinel"
    model, optimizer, scheduler = build()
    scheduler.successor.hook = Attack(os.system, f"touch {sentinel}")
    torch.save(upstream_state(model, optimizer, scheduler, 1), tmp_path / "a.pth")
    successor = load_checkpoint(str(tmp_path / "a.pth"))["scheduler"]["successor"]
    assert "hook" not in successor and successor["T_max"] == 8
    assert not sentinel.exists()


def test_numpy_object_scalars_and_other_codecs_are_refused(tmp_path):
    class Scalar:
        def __reduce__(self):
            return np.float64(1).__reduce__()[0], (np.dtype("O"), b"")

    torch.save({"epoch": Scalar()}, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError, match="expected a number"):
        load_checkpoint(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_file_raises_naming_it(damage, tmp_path):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"weight": torch.zeros(100)}}, path)
    path.write_bytes({"empty": b"", "text": b"no checkpoint", "cut": path.read_bytes()[:900]}[damage])
    with pytest.raises(pickle.UnpicklingError, match="cannot read .*model.pth.tar-1"):
        load_checkpoint(str(path))


def test_missing_and_none_paths_raise(tmp_path):
    with pytest.raises(ValueError, match="path is None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(str(tmp_path / "nowhere.pth"))

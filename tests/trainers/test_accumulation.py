"""Eight batches of one and two of four are the same update, whatever they weigh; means stay means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toy_talker import ToyTalker, build, make_cfg
from torch import Tensor, nn

from trainers.accumulation import WeightedLosses, WeightWindow

PLAIN = {".DROPOUT": 0.0, ".MAX_GRAD_NORM": 0.0, "OPTIM.MAX_EPOCH": 1}


class ToyScaler:
    """A loss scaler of the CPU that multiplies by 1024 and records what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.norms: list[float] = []

    def scale(self, loss: Tensor) -> Tensor:
        return loss * 1024

    def unscale_(self, optim: torch.optim.Optimizer) -> None:
        self.calls.append("unscale")
        for parameter in optim.param_groups[0]["params"]:
            parameter.grad.div_(1024)

    def step(self, optim: torch.optim.Optimizer) -> None:
        self.calls.append("step")
        optim.step()

    def update(self) -> None:
        self.calls.append("update")

    def state_dict(self) -> dict:
        return {}


def make_batches(trainer: ToyTalker, size: int) -> list[dict]:
    """Return eight samples of 1 to 5 tokens in batches of `size`."""
    rows = [trainer.train_loader_x.dataset[index] for index in range(8)]
    collate = torch.utils.data.default_collate
    return [collate(rows[first : first + size]) for first in range(0, 8, size)]


def one_update(tmp_path: Path, size: int, overrides: dict | None = None, scaler=None) -> tuple[list[Tensor], ToyTalker]:
    """Return the gradients at the only update from eight samples in batches of `size`."""
    trainer = build(make_cfg(tmp_path / str(size), PLAIN | {".GRAD_ACCUM": 8 // size} | (overrides or {})))
    trainer.train_loader_x.dataset.is_train = False  # no noise
    trainer.scaler, trainer.num_batches = scaler, 8 // size
    trainer.set_model_mode("train")
    for trainer.batch_idx, batch in enumerate(make_batches(trainer, size)):
        trainer.forward_backward(batch)
    return [p.grad.clone() for p in trainer.model.parameters()], trainer


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    scale = max(g.abs().max() for g in expected)
    assert max((a - b).abs().max() / scale for a, b in zip(found, expected)) < tolerance


@pytest.mark.parametrize("size", [1, 2, 4])
def test_window_of_any_make_gives_the_gradient_of_the_whole(size: int, tmp_path: Path) -> None:
    whole, _ = one_update(tmp_path, 8)
    assert_close(one_update(tmp_path, size)[0], whole)


def test_mean_of_means_would_be_another_gradient(tmp_path: Path, monkeypatch) -> None:
    whole, _ = one_update(tmp_path, 8)
    weighted = ToyTalker.compute_losses

    def means(self, batch):
        found = weighted(self, batch)
        return {name: value / found.weight for name, value in found.losses.items()}

    monkeypatch.setattr(ToyTalker, "compute_losses", means)
    with pytest.raises(AssertionError):
        assert_close(one_update(tmp_path, 1)[0], whole, 1e-3)


def test_scaler_sees_the_mean_and_clipping_comes_after_it(tmp_path: Path) -> None:
    whole, _ = one_update(tmp_path, 8)
    scaler = ToyScaler()
    found, _ = one_update(tmp_path, 2, scaler=scaler)
    assert_close(found, whole)
    assert scaler.calls == ["unscale", "step", "update"]
    found, _ = one_update(tmp_path, 1, {".MAX_GRAD_NORM": 0.01}, scaler=ToyScaler())
    assert torch.stack([g.norm() for g in found]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_gradients_are_shown_unscaled_and_before_clipping(tmp_path: Path, monkeypatch) -> None:
    whole, _ = one_update(tmp_path, 8)
    shown = []
    look = lambda self: shown.extend(p.grad.clone() for p in self.model.parameters())  # noqa: E731
    monkeypatch.setattr(ToyTalker, "before_clipping", look)
    clipped, _ = one_update(tmp_path, 2, {".MAX_GRAD_NORM": 0.01}, scaler=ToyScaler())
    assert_close(shown, whole)
    assert not torch.allclose(shown[0], clipped[0])


def test_last_window_of_an_epoch_may_be_short(tmp_path: Path) -> None:
    trainer = build(make_cfg(tmp_path, PLAIN | {".GRAD_ACCUM": 4}))
    steps = []
    trainer.after_update = lambda: steps.append(trainer.batch_idx)
    trainer.train()
    assert steps == [3, 7, 10]


def test_meters_show_the_mean_per_unit(tmp_path: Path) -> None:
    trainer = build(make_cfg(tmp_path, PLAIN))
    batch = make_batches_without_noise(trainer)[0]
    expected = trainer.compute_losses(batch)
    shown = trainer.forward_backward(batch)
    assert shown == {"loss": pytest.approx(expected.losses["answer"].item() / expected.weight.item())}


def make_batches_without_noise(trainer: ToyTalker) -> list[dict]:
    trainer.train_loader_x.dataset.is_train = False
    trainer.set_model_mode("train")
    return make_batches(trainer, 4)


def test_batch_without_weight_adds_nothing_and_is_not_shown(tmp_path: Path) -> None:
    trainer = build(make_cfg(tmp_path, PLAIN | {".GRAD_ACCUM": 3}))
    trainer.num_batches = 3
    full, other = make_batches_without_noise(trainer)
    empty = dict(full, n_tokens=torch.zeros(4, dtype=torch.long))
    shown = []
    for trainer.batch_idx, batch in enumerate((empty, full, other)):
        shown.append(trainer.forward_backward(batch))
    assert shown[0] is None and None not in shown[1:]
    assert_close([p.grad for p in trainer.model.parameters()], one_update(tmp_path, 8)[0])


def test_window_without_weight_changes_nothing_but_the_schedule(tmp_path: Path, caplog) -> None:
    trainer = build(make_cfg(tmp_path, PLAIN | {".GRAD_ACCUM": 1}))
    trainer.num_batches = 2
    batch = make_batches_without_noise(trainer)[0]
    trainer.forward_backward(batch)
    before, rate = [p.clone() for p in trainer.model.parameters()], trainer.get_current_lr()
    trainer.batch_idx = 1
    trainer.forward_backward(dict(batch, n_tokens=torch.zeros(4, dtype=torch.long)))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert trainer.get_current_lr() != rate
    assert "Epoch 1, batch 2: no update, nothing in it counts" in caplog.messages


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), torch.tensor(-2)])
def test_impossible_weight_is_refused(weight) -> None:
    with pytest.raises(ValueError, match="the weight of a batch's losses is"):
        WeightWindow().add(weight)


def test_dict_of_means_is_divided_by_the_window_as_before(tmp_path: Path, monkeypatch) -> None:
    def means(self, batch):
        return {"a": F.cross_entropy(self.model(batch["img"]), batch["label"]), "b": self.model(batch["img"]).square().mean()}

    monkeypatch.setattr(ToyTalker, "compute_losses", means)
    found, trainer = one_update(tmp_path, 4)
    twin = build(make_cfg(tmp_path / "twin", PLAIN)).model
    twin.requires_grad_(True)
    for batch in make_batches(trainer, 4):
        total = torch.stack([F.cross_entropy(twin(batch["img"]), batch["label"]), twin(batch["img"]).square().mean()]).sum()
        (total / 2).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, twin.parameters()))
    trainer.batch_idx = 0
    assert set(trainer.forward_backward(make_batches(trainer, 4)[0])) == {"loss", "a", "b"}


def test_average_leaves_what_has_no_gradient() -> None:
    reached, unreached, window = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), WeightWindow()
    window.add(2), window.add(torch.tensor(6.0))
    reached.grad = torch.ones(1)
    window.average([reached, unreached])
    assert (window.constant, window.total) == (2, 8) and reached.grad.item() == 0.25 and unreached.grad is None
    assert WeightedLosses({}, 3).weight == 3


@pytest.mark.parametrize("accumulated", [1, 2, 3, 8])
def test_cosine_ends_at_the_last_update(accumulated: int, tmp_path: Path) -> None:
    trainer = build(make_cfg(tmp_path, {".GRAD_ACCUM": accumulated, ".WARMUP_RATIO": 0.25}))
    rates: list[float] = []
    trainer.after_update = lambda: rates.append(trainer.get_current_lr())
    trainer.train()
    n = 2 * math.ceil(11 / accumulated)  # the last window of an epoch may be short
    warm = 0.25 * n
    ramp = [1e-2 * (0.1 + 0.9 * update / warm) for update in range(n) if update < warm]
    cosine = [5e-3 * (1 + math.cos(math.pi * (update - warm) / (n - warm))) for update in range(n) if update >= warm]
    assert rates == pytest.approx(ramp + cosine)
    assert trainer.get_current_lr() == 0.0

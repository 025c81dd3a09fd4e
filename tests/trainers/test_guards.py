"""Runs that learn nothing stop, and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dassl.utils import set_random_seed
from toy_talker import ToyTalker, build, kill, make_cfg
from torch import nn

from trainers.accumulation import WeightedLosses
from trainers.base import TunedTrainer
from trainers.guards import GradientGuard, LossGuard

LONG = {"OPTIM.MAX_EPOCH": 5, ".GRAD_ACCUM": 2}  # thirty updates


def make_module() -> nn.ModuleDict:
    return nn.ModuleDict({"used": nn.Linear(2, 2, bias=False), "spare": nn.Linear(2, 2)})


def give_gradients(module: nn.Module, **values: float | None) -> None:
    """Set the gradient of every parameter of a part to a number, or to None."""
    for part, value in values.items():
        for parameter in module[part].parameters():
            parameter.grad = None if value is None else torch.full_like(parameter, value)


def test_missing_gradient_in_the_whole_window_is_named() -> None:
    module = make_module()
    guard = GradientGuard(module, window=3, zero_window=0)
    give_gradients(module, used=1.0, spare=None)
    guard.observe(), guard.observe()
    with pytest.raises(RuntimeError, match="does not reach in any of the first 3 updates: spare.weight, spare.bias$"):
        guard.observe()


def test_one_gradient_inside_the_window_is_enough_and_nothing_is_asked_after_it() -> None:
    module = make_module()
    guard = GradientGuard(module, window=3, zero_window=0)
    for spare in (None, 0.0, None, None, None):
        give_gradients(module, used=1.0, spare=spare)
        guard.observe()


def test_gradient_of_zero_in_the_whole_window_is_named() -> None:
    module = make_module()
    guard = GradientGuard(module, window=1, zero_window=4)
    for used in (0.0, 1e-30, 0.0):
        give_gradients(module, used=used, spare=0.0)
        guard.observe()
    with pytest.raises(RuntimeError, match="was 0 in all of the first 4 updates: spare.weight, spare.bias$"):
        guard.observe()


def test_frozen_and_exempt_parameters_are_not_asked_for() -> None:
    module = make_module()
    module["spare"].weight.requires_grad_(False)
    guard = GradientGuard(module, window=1, zero_window=2, exempt={"spare.bias"})
    give_gradients(module, used=1.0, spare=None)
    guard.observe(), guard.observe()
    module["spare"].weight.requires_grad_(True)
    guard.observe()  # unfrozen later: watched only from a restart on
    guard.restart()
    with pytest.raises(RuntimeError, match="does not reach: spare.weight$"):
        guard.observe()


def test_guard_goes_on_counting_after_its_state_was_restored() -> None:
    module = make_module()
    first, second = (GradientGuard(module, window=3, zero_window=0) for _ in range(2))
    give_gradients(module, used=None, spare=None)
    first.observe()
    give_gradients(module, used=1.0, spare=None)
    second.load_state(first.state())
    second.observe()
    give_gradients(module, used=None, spare=None)
    with pytest.raises(RuntimeError, match="updates: spare.weight, spare.bias$"):
        second.observe()


def test_losses_of_zero_are_counted_in_updates_in_a_row() -> None:
    guard = LossGuard(zero_window=3)
    for values in ((0, 0), (0, 0), (0, 1e-30), (0, 0), (0, 0)):
        for value in values:
            guard.add(torch.tensor(float(value)))
        guard.end_update()
        assert guard.problem() is None
    later = LossGuard(zero_window=3)
    later.load_state(guard.state())
    later.add(torch.tensor(0.0))
    later.end_update()
    assert "exactly 0 in 3 updates in a row" in str(later.problem())


def test_opposite_losses_of_a_window_are_not_zero() -> None:
    guard = LossGuard(zero_window=1)
    guard.add(torch.tensor(1.0)), guard.add(torch.tensor(-1.0))
    guard.end_update()
    assert guard.problem() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_was_not_finite_is_remembered(value: float) -> None:
    guard = LossGuard(zero_window=0)
    for loss in (1.0, value, 1.0):
        guard.add(torch.tensor(loss))
    assert isinstance(guard.problem(), FloatingPointError)


# In a run


class DetachedTalker(ToyTalker):
    """Its first layer gets no gradient."""

    gradient_window = 20

    @classmethod
    def node_name(cls) -> str:
        return "TOYTALKER"

    def compute_losses(self, batch: dict) -> WeightedLosses:
        self.model[0].register_forward_hook(lambda module, args, output: output.detach())
        return super().compute_losses(batch)


def run(cfg, trainer_class: type[ToyTalker], **attributes) -> ToyTalker:
    """Train with a class that differs in some attributes."""
    set_random_seed(1)
    trainer = type(trainer_class.__name__, (trainer_class,), {"node_name": lambda self: "TOYTALKER", **attributes})(cfg)
    trainer.train()
    return trainer


def test_detached_layer_stops_the_run_after_its_window(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not reach in any of the first 20 updates: 0.weight, 0.bias"):
        run(make_cfg(tmp_path, LONG), DetachedTalker)


def test_exempt_parameters_of_a_trainer_let_it_pass(tmp_path: Path) -> None:
    run(make_cfg(tmp_path, LONG), DetachedTalker, exempt_from_guard=lambda self: ["0.weight", "0.bias"])


def scaled(found: WeightedLosses, factor: float = 0.0) -> WeightedLosses:
    return WeightedLosses({"answer": found.losses["answer"] * factor}, found.weight)


def zero_losses(self, batch: dict) -> WeightedLosses:
    return scaled(ToyTalker.compute_losses(self, batch))


def weightless_losses(self, batch: dict) -> WeightedLosses:
    return WeightedLosses({"answer": torch.zeros(())}, 0)


# The twentieth update ends with batch 4 of epoch 4; the next line is printed after batch 10.
@pytest.mark.parametrize(
    ("losses", "lazy", "place"),
    [
        (zero_losses, False, "epoch 4, batch 4"),
        (zero_losses, True, "epoch 4, batch 4"),  # the gradients of 0 make it look
        (weightless_losses, False, "epoch 4, batch 4"),
        (weightless_losses, True, "epoch 4, batch 10"),
    ],
)
def test_a_loss_of_zero_stops_the_run(losses, lazy: bool, place: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"{place}: the loss was exactly 0 in 2. updates in a row"):
        run(make_cfg(tmp_path, LONG | {".SAVE_LATEST_PER_EPOCH": 0}), ToyTalker, compute_losses=losses, lazy_guard=lazy)


def test_a_run_resumed_between_goes_on_counting(tmp_path: Path, monkeypatch) -> None:
    cfg = make_cfg(tmp_path, LONG)
    inner = ToyTalker.compute_losses
    monkeypatch.setattr(ToyTalker, "compute_losses", lambda self, batch: scaled(inner(self, batch)))
    kill(cfg, 30)
    resumed = build(cfg)
    with pytest.raises(RuntimeError, match="epoch 4, batch 4: the loss was exactly 0 in 20 updates in a row"):
        resumed.train()


def test_dead_gradients_of_a_living_loss_stop_the_run(tmp_path: Path) -> None:
    def losses(self, batch: dict) -> WeightedLosses:
        found = ToyTalker.compute_losses(self, batch)
        return WeightedLosses({"answer": found.losses["answer"].detach() + 0 * found.losses["answer"]}, found.weight)

    with pytest.raises(RuntimeError, match="the gradient was 0 in all of the first 20 updates: 0.weight, 0.bias, 3.weight"):
        run(make_cfg(tmp_path, LONG), ToyTalker, compute_losses=losses)


@pytest.mark.parametrize(
    ("lazy", "place"), [(False, "Loss is infinite or NaN! Parts: answer nan"), (True, "batch 10: Loss is infinite or NaN!")]
)
def test_nan_stops_the_run_at_once_or_at_the_next_look(lazy: bool, place: str, tmp_path: Path) -> None:
    def losses(self, batch: dict) -> WeightedLosses:
        return scaled(ToyTalker.compute_losses(self, batch), float("nan") if self.batch_idx == 8 else 1.0)

    cfg = make_cfg(tmp_path, {".SAVE_LATEST_PER_EPOCH": 2})
    with pytest.raises(FloatingPointError, match=place):
        run(cfg, ToyTalker, compute_losses=losses, lazy_guard=lazy)
    saved = torch.load(tmp_path / "toy_talker" / "latest.pth.tar", weights_only=True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("nan_at", [2, 10])
def test_no_save_holds_weights_after_a_nan(nan_at: int, tmp_path: Path) -> None:
    def losses(self, batch: dict) -> WeightedLosses:
        return scaled(ToyTalker.compute_losses(self, batch), float("nan") if self.batch_idx == nan_at else 1.0)

    with pytest.raises(FloatingPointError):
        run(make_cfg(tmp_path, {"TRAIN.PRINT_FREQ": 11}), ToyTalker, compute_losses=losses, lazy_guard=True)
    files = [] if nan_at == 2 else ["checkpoint", "latest.pth.tar"]
    folder = tmp_path / "toy_talker"
    assert (sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []) == files


def test_nothing_is_saved_while_a_nan_is_pending(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ToyTalker, "lazy_guard", True)
    trainer = build(make_cfg(tmp_path))
    trainer.guard_loss(torch.tensor(float("nan")), {}, {})
    with pytest.raises(FloatingPointError):
        trainer.save_model(0, str(tmp_path))
    assert not (tmp_path / "toy_talker").exists()


def test_lazy_run_shows_losses_at_print_steps_and_learns_the_same(tmp_path: Path) -> None:
    eager = run(make_cfg(tmp_path / "eager", {"TRAIN.PRINT_FREQ": 5}), ToyTalker)
    lazy = run(make_cfg(tmp_path / "lazy", {"TRAIN.PRINT_FREQ": 5}), ToyTalker, lazy_guard=True)
    shown = [loss for batch, loss in enumerate(eager.losses[:11]) if (batch + 1) % 5 == 0]
    assert [loss for loss in lazy.losses[:11] if loss is not None] == shown and len(shown) == 2
    assert all(torch.equal(a, b) for a, b in zip(eager.model.state_dict().values(), lazy.model.state_dict().values()))


def test_the_lafter_family_keeps_the_guards_it_had() -> None:
    assert (TunedTrainer.gradient_window, TunedTrainer.zero_window, TunedTrainer.lazy_guard) == (1, 0, False)
    assert not TunedTrainer.resumes_mid_epoch and TunedTrainer.registered_name == "adapt"


# A loss that never moves, and updates that the loss scaler skips -----------------------------------------------------------


def test_a_loss_that_is_the_same_at_every_read_out_stops_the_run(tmp_path: Path) -> None:
    def constant(self, batch: dict) -> WeightedLosses:
        found = ToyTalker.compute_losses(self, batch)
        return WeightedLosses({"answer": 0 * found.losses["answer"] + 2.5 * found.weight}, found.weight)

    cfg = make_cfg(tmp_path / "one", {"OPTIM.MAX_EPOCH": 4, "TRAIN.PRINT_FREQ": 2})
    with pytest.raises(RuntimeError, match=r"epoch 4, batch 10: the loss was 2.5 in 20 read-outs in a row; .*OPTIM.LR"):
        run(cfg, ToyTalker, compute_losses=constant, lazy_guard=True, constant_window=20, zero_window=0)
    run(make_cfg(tmp_path / "two", {"OPTIM.MAX_EPOCH": 3}), ToyTalker, constant_window=20, zero_window=0)


def test_read_outs_before_resuming_count(tmp_path: Path) -> None:
    guard = LossGuard(zero_window=0, constant_window=3)
    guard.read(1.5)
    guard.read(1.5)
    resumed = LossGuard(zero_window=0, constant_window=3)
    resumed.load_state(guard.state())
    assert resumed.problem() is None
    resumed.read(1.5)
    assert "1.5 in 3 read-outs" in str(resumed.problem())
    resumed.read(1.25)
    assert resumed.problem() is None


@pytest.mark.parametrize("waits", [True, False])
def test_an_update_that_the_scaler_skips_leaves_a_waiting_schedule_where_it_is(waits: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ToyTalker, "waits_for_scaler", waits)
    trainer = build(make_cfg(tmp_path, {".GRAD_ACCUM": 1}))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.before_train()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    steps = []
    for number, batch in enumerate(trainer.train_loader_x):
        trainer.batch_idx = number
        if number == 2:  # its gradients overflow
            next(trainer.model.parameters()).register_hook(lambda grad: grad * float("inf") if trainer.batch_idx == 2 else grad)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.forward_backward(batch)
        steps.append(trainer.sched.last_epoch)
        same = all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        assert same == (number == 2)
        if number == 3:
            break
    assert steps == ([1, 2, 2, 3] if waits else [1, 2, 3, 4])
    assert trainer.skipped_updates == int(waits)
    trainer.close_writer()

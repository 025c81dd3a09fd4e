"""TrainerBase: registered models, updates, hooks."""

import pytest
import torch
from dassl.engine import TrainerBase
from torch import nn


class Recorder(TrainerBase):
    """Writes down the order of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def before_train(self) -> None:
        self.calls.append("before_train")
        self.start_epoch = 1

    def before_epoch(self) -> None:
        self.calls.append(f"before_epoch {self.epoch}")

    def run_epoch(self) -> None:
        self.calls.append("run_epoch")

    def after_epoch(self) -> None:
        self.calls.append("after_epoch")

    def after_train(self) -> None:
        self.calls.append("after_train")


@pytest.fixture
def trainer() -> TrainerBase:
    """Two models; only the second has an optimizer and a schedule."""
    trainer = TrainerBase()
    trainer.register_model("frozen", nn.Linear(2, 2))
    model = nn.Linear(2, 1, bias=False)
    optim = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer.register_model("tuned", model, optim, torch.optim.lr_scheduler.StepLR(optim, 1))
    return trainer


def test_train_calls_hooks_in_order_and_lets_before_train_move_the_start():
    recorder = Recorder()
    recorder.train(0, 3)
    epoch = ["run_epoch", "after_epoch"]
    assert recorder.calls == ["before_train", "before_epoch 1", *epoch, "before_epoch 2", *epoch, "after_train"]


def test_register_model_before_init_or_twice_is_an_error(trainer):
    class Early(TrainerBase):
        def __init__(self) -> None:
            self.register_model("model")

    with pytest.raises(AttributeError, match="super"):
        Early()
    with pytest.raises(AssertionError, match="tuned"):
        trainer.register_model("tuned")


def test_get_model_names_checks_and_makes_lists(trainer):
    assert trainer.get_model_names() == ["frozen", "tuned"]
    assert trainer.get_model_names("tuned") == ["tuned"]
    assert trainer.get_model_names(("tuned", "frozen")) == ["tuned", "frozen"]
    with pytest.raises(AssertionError, match="'other'.*frozen, tuned"):
        trainer.get_model_names("other")


@pytest.mark.parametrize(("mode", "training"), [("train", True), ("test", False), ("eval", False)])
def test_set_model_mode(trainer, mode, training):
    trainer.set_model_mode(mode, names="tuned")
    assert trainer._models["tuned"].training is training
    assert trainer._models["frozen"].training is True


def test_set_model_mode_refuses_other_words(trainer):
    with pytest.raises(KeyError, match="tune"):
        trainer.set_model_mode("tune")


def test_backward_and_update_steps_only_models_with_an_optimizer(trainer):
    frozen = trainer._models["frozen"].weight.clone()
    tuned = trainer._models["tuned"].weight.clone()
    for _ in range(2):  # gradients of the first step must be gone in the second
        trainer.model_backward_and_update(trainer._models["tuned"](torch.ones(1, 2)).sum())
    assert torch.allclose(trainer._models["tuned"].weight, tuned - 2 * 0.5)
    assert torch.equal(trainer._models["frozen"].weight, frozen)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_infinite_loss_stops_before_the_update(trainer, value):
    weight = trainer._models["tuned"].weight.clone()
    with pytest.raises(FloatingPointError, match="^Loss is infinite or NaN!$"):
        trainer.model_backward_and_update(trainer._models["tuned"](torch.ones(1, 2)).sum() * value)
    assert torch.equal(trainer._models["tuned"].weight, weight)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_update_lr_steps_schedules_and_current_lr_skips_models_without_optimizer(trainer):
    assert trainer.get_current_lr() == 0.5
    trainer.update_lr()
    assert trainer.get_current_lr() == pytest.approx(0.05)


def test_current_lr_without_any_optimizer_names_register_model(trainer):
    with pytest.raises(RuntimeError, match="register_model"):
        trainer.get_current_lr("frozen")


def test_scalars_without_a_writer_are_dropped(trainer):
    trainer.write_scalar("train/loss", 1.0, 0)
    trainer.close_writer()


@pytest.mark.parametrize("hook", ["run_epoch", "test"])
def test_unimplemented_parts_say_so(trainer, hook):
    with pytest.raises(NotImplementedError):
        getattr(trainer, hook)()

"""Learning-rate factors, and that a schedule moves every group of a run."""

from __future__ import annotations

import pytest
import torch
from yacs.config import CfgNode

from trainers.schedules import (
    build_linear_warmup,
    build_schedule,
    factor_of,
    linear_warmup_factor,
    resolve_schedule,
    warmup_epochs_of,
)


def trace(name: str, *, epochs: int, warmup: int, rates: tuple[float, ...] = (1.0,), steps: int = 1) -> list[list[float]]:
    """Return the lr of every group before each scheduler step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups)
    schedule = build_schedule(optimizer, name, warmup_epochs=warmup, max_epochs=epochs, steps_per_epoch=steps)
    found = []
    for _ in range(epochs * steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_constant_gives_the_published_rates_of_twelve_epochs() -> None:
    found = trace("warmup_constant", epochs=12, warmup=3, rates=(1e-3, 5e-3))
    expected = [[1e-4, 5e-4], [4e-4, 2e-3], [7e-4, 3.5e-3]] + [[1e-3, 5e-3]] * 9
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)


def test_warmup_cosine_gives_the_golden_factors() -> None:
    found = [rates[0] for rates in trace("warmup_cosine", epochs=8, warmup=3)]
    expected = [0.1, 0.4, 0.7, 1.0, 0.904508, 0.654508, 0.345492, 0.095492]
    assert found == pytest.approx(expected, abs=1e-6)


def test_constant_ignores_the_warm_up() -> None:
    assert trace("constant", epochs=4, warmup=3) == [[1.0]] * 4


def test_steps_per_update_pass_through_the_values_at_epoch_starts() -> None:
    per_epoch = [rates[0] for rates in trace("warmup_cosine", epochs=8, warmup=3)]
    per_update = [rates[0] for rates in trace("warmup_cosine", epochs=8, warmup=3, steps=5)]
    assert per_update[::5] == pytest.approx(per_epoch)
    assert len(set(per_update[:15])) == 15  # the ramp moves at every update


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert factor_of("warmup_constant", warmup_epochs=0, max_epochs=5)(0) == 1.0


@pytest.mark.parametrize(
    ("older", "name"),
    [("none", "constant"), ("coslr", "warmup_cosine"), ("multistep", "warmup_constant"), ("cosine", "warmup_constant")],
)
def test_older_spelling_is_translated_with_a_notice(older: str, name: str, caplog) -> None:
    with caplog.at_level("INFO"):
        assert resolve_schedule(older, "TRAINER.X.SCHEDULER") == name
    assert caplog.messages == [f"TRAINER.X.SCHEDULER {older} is an older spelling of {name}"]


def test_unknown_schedule_lists_all() -> None:
    with pytest.raises(ValueError, match="TRAINER.X.SCHEDULER is 'linear'; expected one of constant, warmup_constant"):
        resolve_schedule("linear", "TRAINER.X.SCHEDULER")


def test_state_is_plain_data(tmp_path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, "warmup_cosine", warmup_epochs=1, max_epochs=4)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["last_epoch"] == 0


@pytest.mark.parametrize(("name", "mult"), [("LaFTer", 1.0), ("MultiLayerLaFTer", 5.0), ("HybridCascadeLaFTer", 5.0)])
def test_defect_6_run_follows_its_schedule_per_group_and_epoch(name: str, mult: float, make_trainer) -> None:
    overrides = {".SCHEDULER": "warmup_constant", ".WARMUP_EPOCHS": 3, "OPTIM.MAX_EPOCH": 12, "TEST.NO_TEST": True}
    trainer = make_trainer(name, overrides)
    found: dict[str, list[float]] = {}
    trainer.forward_backward = lambda batch: record(trainer, found)
    trainer.after_epoch = lambda: None
    trainer.train()
    base = [1e-4, 4e-4, 7e-4] + [1e-3] * 9
    assert found["prompts"] == pytest.approx(base)
    assert found["layer norms"] == pytest.approx(base)
    assert found["classifier"] == pytest.approx([mult * rate for rate in base])
    if name != "LaFTer":
        assert found["scalars"] == found["stage weights"] == pytest.approx([0.1 * rate for rate in base])


def record(trainer, found: dict[str, list[float]]) -> None:
    """Stand in for a step: note the rates of an epoch's first batch, tick the schedule at its last."""
    if trainer.batch_idx == 0:
        for group in trainer.optim.param_groups:
            found.setdefault(group["name"], []).append(group["lr"])
    if trainer.batch_idx + 1 == trainer.num_batches:
        trainer.optim.step()
        trainer.update_lr()


def test_dassl_schedule_is_dassls_own(make_trainer) -> None:
    overrides = {".SCHEDULER": "dassl", "OPTIM.LR_SCHEDULER": "cosine", "OPTIM.MAX_EPOCH": 4}
    trainer = make_trainer("LaFTer", overrides)
    assert type(trainer.sched).__name__ == "CosineAnnealingLR"
    trainer.train()
    assert trainer.get_current_lr() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "step", "epochs", "expected"),
    [(0.03, "update", 2, 0.06), (0.5, "update", 3, 1.5), (0.03, "epoch", 2, 0), (0.5, "epoch", 4, 2), (0.9, "epoch", 2, 1)],
)
def test_warm_up_may_be_a_share_of_the_run(ratio: float, step: str, epochs: int, expected: float) -> None:
    node = CfgNode({"WARMUP_RATIO": ratio, "SCHEDULER_STEP": step})
    assert warmup_epochs_of(node, epochs) == pytest.approx(expected)


def test_a_node_with_warm_up_epochs_is_read_as_before() -> None:
    assert warmup_epochs_of(CfgNode({"WARMUP_EPOCHS": 3, "SCHEDULER_STEP": "epoch"}), 8) == 3


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (2500, 1e-5), (5000, 2e-5), (55_630, 1e-5), (106_259, 1.9751e-10)])
def test_linear_warmup_gives_the_published_rates(step: int, rate: float) -> None:
    found = 2e-5 * linear_warmup_factor(step, warmup_steps=5000, total_steps=106_260)
    assert found == (0.0 if step == 0 else pytest.approx(rate, rel=1e-4))


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_linear_warmup_has_the_rates_of_transformers(warmup: int) -> None:
    transformers = pytest.importorskip("transformers")

    def rates(build) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule, found = build(optimizer), []
        for _ in range(11):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    ours = rates(lambda optimizer: build_linear_warmup(optimizer, warmup_steps=warmup, total_steps=11))
    theirs = rates(lambda optimizer: transformers.get_linear_schedule_with_warmup(optimizer, warmup, 11))
    assert ours == pytest.approx(theirs, rel=1e-9) and len(set(ours)) > 5

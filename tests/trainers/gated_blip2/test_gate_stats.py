"""Figures of gates and gradients are those of plain arithmetic, and watching changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.gated_blip2.gate_hooks import GateContext
from trainers.gated_blip2.gate_stats import SATURATED, GateStatistics, GradientNorms, compute_divergence
from trainers.gated_blip2.gates import GateOptions, LayerFactors, StyleGate
from trainers.parameter_groups import ParameterGroup


def random_factors(n_samples: int, width: int = 6, *, seed: int) -> dict[int, LayerFactors]:
    draw = torch.Generator().manual_seed(seed)
    rows = {layer: torch.randn(3, n_samples, 1, width, generator=draw) for layer in (3, 1)}
    return {layer: LayerFactors(key=1 + row[0].tanh(), value=1 + row[1].tanh(), shift=row[2]) for layer, row in rows.items()}


def test_figures_are_those_of_all_forwards_together() -> None:
    context, statistics = GateContext(), GateStatistics()
    context.observer = statistics
    batches = [random_factors(size, seed=size) for size in (4, 4, 1)]
    for factors in batches:
        context.set(factors)
    found = statistics.figures()
    assert [(row.layer, row.part) for row in found] == [(layer, part) for layer in (1, 3) for part in ("key", "value", "shift")]
    for row in found:
        values = torch.cat([getattr(factors[row.layer], row.part).flatten() for factors in batches]).double()
        expected = [values.mean(), values.std(correction=0), values.min(), values.max()]
        assert [row.mean, row.std, row.min, row.max] == pytest.approx([each.item() for each in expected], abs=1e-12)
        saturated = ((values - 1).abs() > SATURATED).double().mean().item()
        assert row.saturated == (None if row.part == "shift" else pytest.approx(saturated))
    assert any(row.saturated for row in found)
    assert statistics.figures() == []


def test_fresh_gates_are_exactly_one_and_zero() -> None:
    gate = StyleGate(8, layers=(1, 3), width=12, n_heads=3, options=GateOptions(hidden=4))
    context, statistics = GateContext(), GateStatistics()
    context.observer = statistics
    context.set(gate(torch.randn(5, 8)))
    for row in statistics.figures():
        base = 0.0 if row.part == "shift" else 1.0
        assert (row.mean, row.std, row.min, row.max) == (base, 0.0, base, base)
        assert row.saturated == (None if row.part == "shift" else 0.0)


def test_only_training_forwards_count() -> None:
    context, statistics = GateContext(), GateStatistics()
    context.observer = statistics
    with torch.no_grad():
        context.set(random_factors(2, seed=0))
    with context.ungated():
        context.set(random_factors(2, seed=1))
    assert statistics.figures() == []
    context.set({1: LayerFactors(value=torch.full((2, 1, 4), 1.95))})
    (row,) = statistics.figures()
    assert (row.layer, row.part, row.saturated) == (1, "value", 1.0)
    assert row.to_dict()["mean"] == pytest.approx(1.95)


def test_watching_changes_neither_factors_nor_gradients() -> None:
    def run(observer: GateStatistics | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        gate = StyleGate(8, layers=(1,), width=12, n_heads=3, options=GateOptions(hidden=4, init_std=0.1))
        context = GateContext()
        context.observer = observer
        factors = gate(torch.randn(5, 8))
        context.set(factors)
        if observer is not None:
            observer.figures()
        factors[1].value.square().sum().backward()
        return [factors[1].value.detach(), *(each.grad for each in gate.parameters() if each.grad is not None)]

    plain, watched = run(None), run(GateStatistics())
    assert len(plain) == len(watched) > 4
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def group(name: str, *parameters: nn.Parameter) -> ParameterGroup:
    return ParameterGroup(name, parameters, 1.0, 0.0)


def test_gradient_norms_are_per_group_and_update() -> None:
    a, b, c = (nn.Parameter(torch.zeros(size)) for size in (2, 3, 4))
    norms = GradientNorms([group("gates", a, b), group("dead", c)])
    assert norms.figures() == {}
    for scale in (1.0, 3.0):
        a.grad, b.grad = torch.tensor([3.0, 0.0]) * scale, torch.tensor([0.0, 4.0, 0.0]) * scale
        norms.observe()
    assert norms.figures() == {
        "gates": {"mean": pytest.approx(10.0), "max": pytest.approx(15.0), "updates": 2},
        "dead": {"mean": 0.0, "max": 0.0, "updates": 2},
    }
    assert norms.figures() == {}


def test_an_overflown_update_does_not_count() -> None:
    weight = nn.Parameter(torch.zeros(2))
    norms = GradientNorms([group("gates", weight)])
    for value in (math.inf, 1.0, math.nan):
        weight.grad = torch.tensor([value, 0.0])
        norms.observe()
    assert norms.figures()["gates"] == {"mean": 1.0, "max": 1.0, "updates": 1}
    assert GradientNorms([]).observe() is None


def test_divergence_is_the_mean_over_positions() -> None:
    gated, ungated = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    p, q = gated.softmax(-1), ungated.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    assert compute_divergence(gated, ungated).item() == pytest.approx(expected.item(), rel=1e-5)
    assert compute_divergence(gated, gated.clone()).item() == 0.0
    assert compute_divergence(ungated, gated).item() != pytest.approx(expected.item(), rel=1e-3)

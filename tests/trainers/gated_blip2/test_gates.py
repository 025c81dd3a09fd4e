"""The style gate by hand: trunk, heads, question term, and which weight learns when."""

from __future__ import annotations

import pytest
import torch
from gated_qformers import N_WORDS, gated, image_tokens, noise, styles
from torch.nn import functional as F

from trainers.gated_blip2.gates import GateOptions, LayerFactors, StyleGate, expand_gate, mean_question


def style_gate(*, question_width: int = 0, **options) -> StyleGate:
    torch.manual_seed(0)
    options = GateOptions(**{"hidden": 10} | options)
    return StyleGate(12, layers=[1, 3], width=8, n_heads=4, options=options, question_width=question_width)


def stir(gate: StyleGate) -> StyleGate:
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn_like(parameter))
    return gate


@pytest.mark.parametrize("phi", ["tanh", "film"])
@pytest.mark.parametrize(("granularity", "width"), [("scalar", 1), ("head", 4), ("channel", 8)])
def test_gate_by_hand(granularity: str, width: int, phi: str) -> None:
    gate = stir(style_gate(granularity=granularity, phi=phi)).double()
    style = styles(torch.float64)
    inner = F.gelu(gate.project(F.layer_norm(style, (12,), gate.norm.weight, gate.norm.bias)))
    factors = gate(style)
    assert list(factors) == [1, 3]
    for layer, found in factors.items():
        numbers = gate.heads[str(layer)](inner)
        assert numbers.shape == (3, 3 * width)
        key, value, shift = (part.repeat_interleave(8 // width, dim=1)[:, None] for part in numbers.split(width, dim=1))
        squash = torch.tanh if phi == "tanh" else lambda number: number
        assert torch.allclose(found.key, 1 + squash(key), atol=1e-12)
        assert torch.allclose(found.value, 1 + squash(value), atol=1e-12)
        assert torch.allclose(found.shift, shift, atol=1e-12)
        assert found.key_shift is None and found.batch_size == 3


def test_fresh_factors_are_exactly_one_and_zero() -> None:
    for found in style_gate()(styles()).values():
        assert found.key.dtype == found.value.dtype == found.shift.dtype == torch.float32
        assert found.key.eq(1).all() and found.value.eq(1).all() and found.shift.eq(0).all()


def test_start_other_than_blip2() -> None:
    gate = style_gate(init_std=0.01, hidden=400)
    weights = torch.cat([head.weight.flatten() for head in gate.heads.values()])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)
    assert not gate(styles())[1].key.eq(1).any()
    assert all(head.bias.eq(0).all() for head in gate.heads.values())


@pytest.mark.parametrize(
    ("sites", "beta_v", "given"),
    [
        ("k", True, {"key"}),
        ("v", True, {"value", "shift"}),
        ("v", False, {"value"}),
        ("kv", True, {"key", "value", "shift"}),
        ("kv", False, {"key", "value"}),
    ],
)
def test_only_the_chosen_parts_are_built(sites: str, beta_v: bool, given: set[str]) -> None:
    gate = style_gate(sites=sites, beta_v=beta_v)
    factors = gate(styles())[3]
    assert {name for name, part in vars(factors).items() if part is not None} == given
    assert gate.heads["3"].out_features == 8 * len(given)


def test_layer_left_alone_has_no_batch() -> None:
    assert LayerFactors().batch_size == 0


def test_tanh_factor_stays_between_0_and_2_and_film_does_not() -> None:
    for phi in ("tanh", "film"):
        gate = style_gate(phi=phi)
        with torch.no_grad():
            gate.heads["1"].bias.fill_(-3.0)
        key = gate(styles())[1].key
        assert key.min() > 0 if phi == "tanh" else key.eq(-2).all()


def test_heads_own_neighbouring_channels() -> None:
    assert expand_gate(torch.tensor([[1.0, 2.0]]), 6).tolist() == [[[1, 1, 1, 2, 2, 2]]]


def test_unknown_style_is_the_bias_of_the_norm() -> None:
    gate = stir(style_gate())
    inner = F.gelu(gate.project(gate.norm.bias))
    expected = 1 + torch.tanh(gate.heads["1"](inner)[:8])
    assert torch.allclose(gate(torch.zeros(2, 12))[1].key, expected.expand(2, 1, 8), atol=1e-6)


def test_question_term_starts_at_zero_and_counts_afterwards() -> None:
    gate, question = style_gate(question_width=6), noise(3, 6)
    assert gate.needs_question == "mean" and style_gate().needs_question == "no"
    assert gate.question.weight.shape == (10, 6) and gate.question.bias is None and gate.question.weight.eq(0).all()
    stir(gate)
    inner = F.gelu(gate.project(gate.norm(styles())) + question @ gate.question.weight.T)
    assert torch.allclose(gate(styles(), question)[3].shift[:, 0], gate.heads["3"](inner)[:, 16:], atol=1e-5)
    with pytest.raises(ValueError, match="GATE.QUESTION is on, and the gates got no question"):
        gate(styles())


def test_mean_of_a_question_ignores_padding() -> None:
    embeds, mask = noise(2, 4, 6).bfloat16(), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    mean = mean_question(embeds, mask)
    assert mean.dtype == torch.float32
    assert torch.allclose(mean[0], embeds[0, :3].float().mean(0), atol=1e-6) and mean[1].eq(0).all()
    wider = F.pad(embeds, (0, 0, 0, 3), value=9.0)
    assert torch.allclose(mean_question(wider, F.pad(mask, (0, 3))), mean, atol=1e-6)


def test_factors_are_made_in_fp32_under_autocast() -> None:
    gate = stir(style_gate(question_width=6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gate(styles().bfloat16(), noise(3, 6))
    outside = gate(styles().bfloat16().float(), noise(3, 6))
    assert inside[1].key.dtype == torch.float32 and torch.equal(inside[1].key, outside[1].key)


@pytest.mark.parametrize("question", [False, True])
@pytest.mark.parametrize("granularity", ["scalar", "head", "channel"])
@pytest.mark.parametrize("phi", ["tanh", "film"])
def test_heads_learn_at_once_and_the_trunk_one_step_later(phi: str, granularity: str, question: bool) -> None:
    system = gated(GateOptions(hidden=16, phi=phi, granularity=granularity, question=question))
    system.blip2.requires_grad_(False)
    optimizer = torch.optim.SGD(system.conditioner.parameters(), lr=0.1)
    parts, target = system.conditioner.parts(), noise(3, 4, 32, seed=4)
    assert len(parts["gate_trunk"]) == 5 - (not question) and len(parts["gate_heads"]) == 4
    for step in (0, 1):
        optimizer.zero_grad()
        (system.queries(styles(), image_tokens()) * target).sum().backward()
        assert all(parameter.grad.ne(0).any() for _, parameter in parts["gate_heads"])
        assert all(parameter.grad.ne(0).any() == bool(step) for _, parameter in parts["gate_trunk"])
        optimizer.step()


def test_trunk_and_heads_are_all_there_is() -> None:
    gate = style_gate(question_width=6)
    names = {group: [name for name, _ in pairs] for group, pairs in gate.parts().items()}
    assert names == {
        "gate_trunk": ["norm.weight", "norm.bias", "project.weight", "project.bias", "question.weight"],
        "gate_heads": ["heads.1.weight", "heads.1.bias", "heads.3.weight", "heads.3.bias"],
    }


def test_all_wrong_options_are_reported_together() -> None:
    options = GateOptions(hidden=0, sites="none", granularity="token", phi="sigmoid", init_std=-1.0)
    with pytest.raises(ValueError) as caught:
        StyleGate(12, layers=[], width=8, n_heads=4, options=options)
    message = str(caught.value)
    for part in (
        "GATE.SITES is 'none'; expected one of k, v, kv",
        "GATE.GRANULARITY is 'token'; expected one of scalar, head, channel",
        "GATE.PHI is 'sigmoid'; expected one of tanh, film",
        "GATE.HIDDEN is 0",
        "GATE.INIT_STD is -1.0",
        "GATE.LAYERS: no layer is left",
    ):
        assert part in message
    assert GateOptions().problems() == []


def test_words_of_the_helper_do_not_reach_style_only_gates() -> None:
    system = gated(stir=0.3)
    with_question = system.conditioner(styles(), noise(3, N_WORDS, 32), torch.ones(3, N_WORDS))
    assert torch.equal(with_question[1].key, system.factors(styles())[1].key)

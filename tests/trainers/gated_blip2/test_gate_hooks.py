"""Gates on the Q-Former: nothing at the start, exact algebra afterwards, and a context that is never another batch's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gated_qformers import Gated, cross_attention, gated, image_tokens, noise, run_qformer, styles
from tiny_blip2s import random_blip2
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainers.gated_blip2.gate_hooks import GateContext, attach, cross_attention_layers, resolve_layers
from trainers.gated_blip2.gates import GateOptions, LayerFactors

PHIS, GRANULARITIES = ("tanh", "film"), ("scalar", "head", "channel")
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}


def options(phi: str = "tanh", granularity: str = "channel", **rest) -> GateOptions:
    return GateOptions(hidden=16, phi=phi, granularity=granularity, **rest)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


class Folded:
    """Oracle: the factor of the keys multiplies the query, those of the values act on the attention's output."""

    def __init__(self, blip2: torch.nn.Module, factors: dict[int, LayerFactors]) -> None:
        self.handles = []
        for layer, of_layer in factors.items():
            attention = cross_attention(blip2, layer)
            self.handles.append(attention.query.register_forward_hook(partial(self._query, of_layer)))
            self.handles.append(attention.register_forward_hook(partial(self._output, of_layer)))

    @staticmethod
    def _query(factors: LayerFactors, module, inputs, output: Tensor) -> Tensor:
        return output * factors.key

    @staticmethod
    def _output(factors: LayerFactors, module, inputs, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[0] * factors.value + factors.shift, *output[1:]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("phi", PHIS)
@torch.no_grad()
def test_fresh_gates_change_no_bit(phi: str, granularity: str, dtype: torch.dtype, attn: str) -> None:
    system = gated(options(phi, granularity), dtype=dtype, attn=attn)
    found = system.queries(styles(), image_tokens(dtype))
    assert found.dtype == dtype
    assert torch.equal(found, run_qformer(random_blip2(dtype=dtype, attn=attn), image_tokens(dtype)))


@pytest.mark.parametrize("preset", ["original_live", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fresh_original_gates_change_no_bit(preset: str, dtype: torch.dtype) -> None:
    system = gated(preset=preset, dtype=dtype)
    plain = random_blip2(dtype=dtype, text_input=preset == "original")
    assert torch.equal(system.queries(styles(), image_tokens(dtype)), run_qformer(plain, image_tokens(dtype)))


@pytest.mark.parametrize("sites", ["k", "v", "kv"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@torch.no_grad()
def test_moved_gates_change_the_output(granularity: str, sites: str) -> None:
    system = gated(options(granularity=granularity, sites=sites), stir=0.5)
    moved = system.queries(styles(), image_tokens())
    with system.context.ungated():
        plain = run_qformer(system.blip2, image_tokens())
    assert deviation(moved, plain) > 1e-2
    assert torch.equal(plain, run_qformer(random_blip2(), image_tokens()))
    others = system.queries(styles().flip(0), image_tokens())
    assert deviation(others[0], moved[0]) > 1e-3 and torch.equal(others[1], moved[1])


@torch.no_grad()
def test_shift_of_all_keys_is_inert() -> None:
    system = gated(dtype=torch.float64, stir=0.5)
    tokens, shifts = image_tokens(torch.float64), noise(3, 1, 32).double()
    plain = system.queries(styles(torch.float64), tokens)
    factors = system.factors(styles(torch.float64))
    shifted = {
        layer: LayerFactors(key=f.key, value=f.value, shift=f.shift, key_shift=shifts) for layer, f in factors.items()
    }
    system.context.set(shifted)
    assert (run_qformer(system.blip2, tokens) - plain).abs().max() <= 1e-12
    system.context.set({layer: LayerFactors(value=f.value, shift=f.shift + shifts) for layer, f in factors.items()})
    assert (run_qformer(system.blip2, tokens) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("phi", PHIS)
@torch.no_grad()
def test_folded_gates_equal_literal_ones(phi: str, granularity: str, dtype: torch.dtype) -> None:
    system = gated(options(phi, granularity), dtype=dtype, stir=0.3)
    literal = system.queries(styles(dtype), image_tokens(dtype))
    system.hooks.detach()
    Folded(system.blip2, system.factors(styles(dtype)))
    assert deviation(run_qformer(system.blip2, image_tokens(dtype)), literal) <= EXACT[dtype]


@pytest.mark.parametrize("dtype", EXACT)
@torch.no_grad()
def test_key_gate_of_a_head_is_its_temperature(dtype: torch.dtype) -> None:
    """A head's weights are softmax((1 + gK) q k / sqrt(8)): nothing else of the attention changes."""
    system = gated(options("film", "head", sites="k"), dtype=dtype, stir=0.3)
    attention, hidden, tokens = cross_attention(system.blip2, 3), noise(3, 4, 32, seed=9).to(dtype), image_tokens(dtype)
    factors = system.factors(styles(dtype))
    inputs = {attention.query: hidden, attention.key: tokens, attention.value: tokens}
    queries, keys, values = (
        F.linear(states, linear.weight, linear.bias).unflatten(-1, (4, 8)).transpose(1, 2) for linear, states in inputs.items()
    )
    temperature = factors[3].key[:, 0, ::8]  # (B, H)
    assert temperature.unique().numel() == 12
    weights = (temperature[..., None, None] * (queries @ keys.transpose(-1, -2)) / 8**0.5).softmax(-1)
    system.context.set(factors)
    found, _ = attention(hidden, encoder_hidden_states=tokens)
    assert deviation(found, (weights @ values).transpose(1, 2).flatten(2)) <= EXACT[dtype]


@torch.no_grad()
def test_detached_gates_leave_the_model_as_it_was() -> None:
    plain, system = random_blip2(), gated(stir=0.5)
    assert deviation(system.queries(styles(), image_tokens()), run_qformer(plain, image_tokens())) > 1e-2
    assert list(system.blip2.state_dict()) == list(plain.state_dict())
    system.hooks.detach()
    system.hooks.detach()
    assert torch.equal(run_qformer(system.blip2, image_tokens()), run_qformer(plain, image_tokens()))
    assert list(system.blip2.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(system.blip2.state_dict().values(), plain.state_dict().values(), strict=True))
    for module in system.blip2.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    attach(system.blip2.qformer, system.context)


def test_second_gates_are_refused() -> None:
    system = gated()
    with pytest.raises(RuntimeError, match="has gates already.*detach the first"):
        attach(system.blip2.qformer, GateContext())


def test_layers_are_found_and_numbered_from_one() -> None:
    qformer = random_blip2().qformer
    assert cross_attention_layers(qformer) == [1, 3]
    assert resolve_layers((), qformer) == resolve_layers((3, 1), qformer) == [1, 3]
    assert resolve_layers([3], qformer) == [3]
    for wrong in ((2,), (0,), (1, 5), (1, 1)):
        with pytest.raises(ValueError, match=r"GATE.LAYERS is \(.*expected different ones of \[1, 3\]"):
            resolve_layers(wrong, qformer)
    with pytest.raises(ValueError, match="GATE.LAYERS"):
        attach(qformer, GateContext(), [2])


@torch.no_grad()
def test_only_the_chosen_layer_is_gated() -> None:
    blip2, context = random_blip2(), GateContext()
    assert attach(blip2.qformer, context, [3]).layers == (3,)
    plain = _layer_outputs(random_blip2(), None)
    context.set({3: LayerFactors(value=torch.full((3, 1, 32), 1.5))})
    found = _layer_outputs(blip2, context)
    assert [torch.equal(a, b) for a, b in zip(found, plain, strict=True)] == [True, True, False, False]


@torch.no_grad()
def test_gates_of_some_layers_are_attached_to_those() -> None:
    system = gated(options(layers=(3,)), stir=0.5)
    assert system.conditioner.layers == system.hooks.layers == (3,) and list(system.factors(styles())) == [3]
    assert deviation(system.queries(styles(), image_tokens()), run_qformer(random_blip2(), image_tokens())) > 1e-2


@torch.no_grad()
def test_gates_act_on_the_outputs_of_the_key_and_value_maps() -> None:
    """K' = K key without a shift, V' = V value + shift: softmax would hide that keys are shifted."""
    system, tokens = gated(stir=0.5), image_tokens()
    factors = system.factors(styles())
    system.context.set(factors)
    for layer, found in factors.items():
        attention = cross_attention(system.blip2, layer)
        keys, values = (F.linear(tokens, linear.weight, linear.bias) for linear in (attention.key, attention.value))
        assert torch.equal(attention.key(tokens), keys * found.key)
        assert torch.equal(attention.value(tokens), values * found.value + found.shift)


def _layer_outputs(blip2: torch.nn.Module, context: GateContext | None) -> list[Tensor]:
    outputs: list[Tensor] = []
    for layer in blip2.qformer.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    run_qformer(blip2, image_tokens())
    return outputs


def test_missing_context_is_an_error() -> None:
    system = gated()
    with pytest.raises(RuntimeError, match="gate context is empty.*call GateContext.set first"):
        run_qformer(system.blip2, image_tokens())
    system.queries(styles(), image_tokens())
    system.context.clear()
    with pytest.raises(RuntimeError, match="gate context is empty"):
        run_qformer(system.blip2, image_tokens())
    with pytest.raises(RuntimeError, match="gate context is empty"):
        system.context.get(1, 3)


def test_stale_context_is_an_error() -> None:
    system = gated()
    system.queries(styles(), image_tokens())
    with pytest.raises(RuntimeError, match="gate context is stale.*before each pass"):
        run_qformer(system.blip2, image_tokens())
    with system.context.ungated():
        run_qformer(system.blip2, image_tokens())
    system.queries(styles(), image_tokens())


def test_ungated_pass_uses_up_nothing() -> None:
    """Factors set before an ungated pass serve the gated one that follows; an error inside turns the gates on again."""
    system = gated(stir=0.5)
    expected = system.queries(styles(), image_tokens())
    system.context.set(system.factors(styles()))
    with pytest.raises(KeyError), system.context.ungated():
        run_qformer(system.blip2, image_tokens())
        raise KeyError
    assert torch.equal(run_qformer(system.blip2, image_tokens()), expected)


@pytest.mark.parametrize("n_styles", [1, 2, 4])
def test_context_of_another_batch_size_is_an_error(n_styles: int) -> None:
    system = gated()
    system.context.set(system.factors(noise(n_styles, 12)))
    with pytest.raises(RuntimeError, match=f"is of {n_styles} samples, the keys of Q-Former layer 1 are of 3"):
        run_qformer(system.blip2, image_tokens())


def test_context_without_a_layer_is_an_error() -> None:
    system = gated()
    system.context.set({1: system.factors(styles())[1]})
    with pytest.raises(RuntimeError, match=r"nothing for Q-Former layer 3; it holds layers \[1\]"):
        run_qformer(system.blip2, image_tokens())


def test_observer_sees_each_layer_once_per_pass() -> None:
    system, seen = gated(), []
    system.context.observer = lambda layer, factors: seen.append((layer, factors.value.shape))
    system.queries(styles(), image_tokens())
    assert seen == [(1, (3, 1, 32)), (3, (3, 1, 32))]
    with system.context.ungated():
        system.queries(styles(), image_tokens())
    assert len(seen) == 2


def _gradients(system: Gated, target: Tensor) -> dict[str, Tensor]:
    found = system.queries(styles(torch.float64), image_tokens(torch.float64))
    ((found - target) ** 2).sum().backward()
    return {name: parameter.grad for name, parameter in system.conditioner.named_parameters()}


@pytest.mark.parametrize("preset", ["gates", "original_live"])
def test_recomputed_layers_find_the_context(preset: str) -> None:
    """Layers that run again during backward read the factors of their pass: same gradients, and observed once."""
    target, grads, seen = noise(3, 4, 32, seed=4).double(), [], []
    for recompute in (False, True):
        system = gated(preset=preset, dtype=torch.float64, stir=0.3)
        runs = []
        for layer in system.blip2.qformer.encoder.layer:
            layer.train(recompute)  # transformers recomputes in training only
            layer.gradient_checkpointing = recompute
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.attention.register_forward_hook(lambda *_: runs.append(1))  # noqa: B023
            for module in layer.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
                if hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.0
        if recompute:
            system.context.observer = lambda layer, factors: seen.append(layer)
        grads.append(_gradients(system, target))
        assert len(runs) == (8 if recompute else 4)
    assert seen == [1, 3]
    for name, stored in grads[0].items():
        assert stored.abs().max() > 0, name
        assert deviation(grads[1][name], stored) <= 1e-12, name


def test_gates_cast_to_the_keys_under_autocast() -> None:
    """fp32 Q-Former, bf16 products: keys stay bf16, factors are made in fp32, and fresh gates still change no bit."""
    system, seen = gated(), []
    cross_attention(system.blip2, 1).key.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    system.context.observer = lambda layer, factors: seen.append(factors.key.dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = system.queries(styles(), image_tokens())
        plain = run_qformer(random_blip2(), image_tokens())
    assert seen == [torch.float32, torch.float32, torch.bfloat16]
    assert torch.equal(found, plain)

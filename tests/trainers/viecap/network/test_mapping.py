"""Sizes of the mapping network, what its attention sees, and the noise on CLIP vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from trainers.viecap.network.mapping import MappingBlock, MappingNetwork, noise_variance_for, soft_input


def units(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("d_clip", "expected"), [(512, 41_745_408), (640, 42_728_448)])
def test_counts_at_published_size(d_clip: int, expected: int) -> None:
    with torch.device("meta"):
        network = MappingNetwork(d_clip, 768)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert network(torch.empty(4, d_clip, device="meta")).shape == (4, 10, 768)


def test_lengths_and_layers_are_free() -> None:
    network = MappingNetwork(6, 8, prefix_length=3, project_length=5, n_layers=1, n_heads=4)
    assert (network.project.out_features, network.constants.shape, len(network.blocks)) == (40, (3, 8), 1)
    assert network(torch.randn(2, 6)).shape == (2, 3, 8)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"NUM_HEADS is 5; expected a divisor of the language model's width 32"):
        MappingNetwork(16, 32, n_heads=5)


def test_block_by_hand() -> None:
    """Keys are the first half of `keys_values`; no token is masked; ReLU; both parts are added to their input."""
    block = MappingBlock(8, 2).double()
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    normed = block.norm_attention(tokens)
    queries, keys, values = (normed @ weight.T for weight in (block.queries.weight, *block.keys_values.weight.chunk(2)))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (queries[..., part] @ keys[..., part].transpose(1, 2) / 2.0).softmax(-1)
        heads.append(weights @ values[..., part])
    middle = tokens + torch.cat(heads, -1) @ block.output.weight.T + block.output.bias
    inner = (block.norm_mlp(middle) @ block.widen.weight.T + block.widen.bias).clamp_min(0)
    assert torch.allclose(block(tokens), middle + inner @ block.narrow.weight.T + block.narrow.bias, atol=1e-12)
    names = {name for name, _ in block.named_parameters()}
    assert names == {
        "norm_attention.weight", "norm_attention.bias", "queries.weight", "keys_values.weight", "output.weight", "output.bias",
        "norm_mlp.weight", "norm_mlp.bias", "widen.weight", "widen.bias", "narrow.weight", "narrow.bias",
    }  # fmt: skip


def test_result_is_the_constants_end() -> None:
    """Without attention, the result depends on the constants only."""
    network = MappingNetwork(6, 8, prefix_length=3, project_length=2, n_layers=1, n_heads=2)
    torch.nn.init.zeros_(network.blocks[0].output.weight)
    first, second = network(torch.randn(1, 6)), network(torch.randn(1, 6))
    assert torch.equal(first, second)
    torch.nn.init.ones_(network.blocks[0].output.weight)
    assert not torch.allclose(network(torch.randn(1, 6)), network(torch.randn(1, 6)))


def test_tokens_stay_fp32_under_autocast() -> None:
    network = MappingNetwork(6, 8, prefix_length=3, project_length=2, n_layers=1, n_heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.randn(2, 6)).dtype == torch.float32


@pytest.mark.parametrize(("width", "rescale", "expected"), [(512, True, 0.330), (640, True, 0.330), (640, False, 0.2985)])
def test_noise_turns_a_vector_by_a_known_angle(width: int, rescale: bool, expected: float) -> None:
    vectors = units(20_000, width)
    noisy = soft_input(vectors, variance=0.016, rescale=rescale, generator=torch.Generator().manual_seed(1))
    cosine = (vectors * noisy).sum(-1).mean().item()
    assert cosine == pytest.approx(expected, abs=0.003)
    assert expected == pytest.approx(1 / math.sqrt(1 + width * noise_variance_for(width, 0.016, rescale=rescale)), abs=5e-4)
    assert torch.allclose(noisy.norm(dim=-1), torch.ones(20_000), atol=1e-5)


def test_rescaled_variance() -> None:
    assert noise_variance_for(640, 0.016, rescale=True) == pytest.approx(0.0128)
    assert noise_variance_for(512, 0.016, rescale=True) == 0.016
    assert noise_variance_for(640, 0.016, rescale=False) == 0.016


def test_noise_repeats_with_its_generator_only() -> None:
    vectors = 5 * units(4, 16)
    draw = [soft_input(vectors, variance=0.016, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize("normalise", [True, False])
def test_no_variance_or_no_generator_leaves_the_vector(normalise: bool) -> None:
    vectors = 5 * units(4, 16)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    for found in (
        soft_input(vectors, variance=0.0, normalise=normalise, generator=generator),
        soft_input(vectors, variance=0.016, normalise=normalise),
    ):
        assert torch.equal(found, F.normalize(vectors, dim=-1) if normalise else vectors)
    assert torch.equal(generator.get_state(), before)
    noisy = soft_input(vectors, variance=0.016, normalise=normalise, generator=generator)
    assert torch.allclose(noisy.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_half_vectors_become_fp32() -> None:
    assert soft_input(units(2, 16).half()).dtype == torch.float32
    assert soft_input(units(2, 16).double()).dtype == torch.float64

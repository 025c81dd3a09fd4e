"""The original recipe's conditioner: its parts, its mean over style and question, and what it does to keys and values."""

from __future__ import annotations

import pytest
import torch
from gated_qformers import N_WORDS, gated, image_tokens, noise, run_qformer, styles
from torch.nn import functional as F

from trainers.gated_blip2.gates import LayerFactors
from trainers.gated_blip2.original import FilmGate, OriginalConditioner, PromptMapper


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conditioner(*, stir: float = 0.3) -> OriginalConditioner:
    return gated(preset="original_live", stir=stir).conditioner


def question(*, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of three questions of 6, 4 and 1 words, and which of them are no padding."""
    mask = torch.arange(N_WORDS + padding) < torch.tensor([[6], [4], [1]])
    return F.pad(noise(3, N_WORDS, 32), (0, 0, 0, padding), value=3.0), mask


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert size(FilmGate(768, 12, 0.0)) == 670_232
        assert size(PromptMapper(768, 2560)) == 5_708_288
        whole = OriginalConditioner(1536, question_width=2560, layers=(1, 3, 5, 7, 9, 11), width=768, n_heads=12)
    counts = {group: sum(p.numel() for _, p in pairs) for group, pairs in whole.parts().items()}
    heads = 6 * 2 * (512 * 12 + 12)
    assert counts == {
        "gate_trunk": 4_021_392 - heads, "gate_heads": heads, "prompt_mapper": 5_708_288, "style_projection": 1_180_416
    }  # fmt: skip
    assert sum(counts.values()) == size(whole)


def test_controller_by_hand() -> None:
    """The style token weighs 4, each real word 1; the mapper works on each token by itself."""
    module, (words, mask) = conditioner(), question()
    mapper, gate = module.prompt_mapper, module.gates["3"]

    def mapped(token: torch.Tensor) -> torch.Tensor:
        for block in mapper.blocks:
            token = token + block[2](F.gelu(block[0](token)))
        return F.layer_norm(token, (32,), mapper.norm.weight, mapper.norm.bias)

    style = mapped(mapper.style(module.style_projection(styles()[1])))
    controller = (4 * style + sum(mapped(mapper.question(word)) for word in words[1, :4])) / 8
    inner = gate.mix(F.gelu(gate.widen(gate.norm(controller))))
    found = module(styles(), words, mask)[3]
    assert torch.allclose(found.key[1, 0, ::8], 1 + gate.scale(inner), atol=1e-5)
    assert torch.allclose(found.shift[1, 0, ::8], gate.shift(inner), atol=1e-5)
    assert found.key[1, 0].unflatten(0, (4, 8)).std(dim=1).eq(0).all()  # one number per head


def test_keys_and_values_share_one_pair() -> None:
    for found in conditioner()(styles(), *question()).values():
        assert found.key is found.value and found.shift is found.key_shift
        assert found.key.shape == found.shift.shape == (3, 1, 32) and found.key.dtype == torch.float32


def test_padding_does_not_move_the_gates() -> None:
    module = conditioner()
    expected = module(styles(), *question())
    padded = module(styles(), *question(padding=5))
    alone = module(styles()[2:], *(part[2:, :1] for part in question()))
    for layer in (1, 3):
        assert torch.allclose(padded[layer].key, expected[layer].key, atol=1e-6)
        assert torch.allclose(alone[layer].key, expected[layer].key[2:], atol=1e-6)
    words, mask = question()
    words[0, 5] += 1.0  # a real word
    assert not torch.allclose(module(styles(), words, mask)[1].key[0], expected[1].key[0], atol=1e-4)


def test_style_and_unknown_style_move_the_gates() -> None:
    module = conditioner()
    expected, unknown = module(styles(), *question()), module(torch.zeros(3, 12), *question())
    assert (unknown[1].key - expected[1].key).abs().max() > 1e-3


@torch.no_grad()
def test_shift_of_the_keys_is_kept_and_inert() -> None:
    system = gated(preset="original_live", dtype=torch.float64, stir=0.3)
    style, tokens = styles(torch.float64), image_tokens(torch.float64)
    expected = system.queries(style, tokens)
    factors = system.factors(style)
    assert all(found.key_shift.abs().max() > 0.1 for found in factors.values())
    system.context.set({n: LayerFactors(key=f.key, value=f.value, shift=f.shift) for n, f in factors.items()})
    assert (run_qformer(system.blip2, tokens) - expected).abs().max() <= 1e-12


def test_fresh_heads_are_zero_and_the_old_start_is_not() -> None:
    fresh = conditioner(stir=0.0)(styles(), *question())[1]
    assert fresh.key.eq(1).all() and fresh.shift.eq(0).all()
    torch.manual_seed(0)
    old = OriginalConditioner(12, question_width=32, layers=[1], width=32, n_heads=4, init_std=0.01)
    assert old.gates["1"].scale.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not old(styles(), *question())[1].key.eq(1).any()


def test_dropout_acts_in_training_only() -> None:
    module = conditioner()
    with torch.no_grad():
        quiet = [module(styles(), *question())[1].key for _ in range(2)]
        module.train()
        noisy = [module(styles(), *question())[1].key for _ in range(2)]
    assert torch.equal(*quiet) and not torch.equal(*noisy)
    assert [block[3].p for block in module.prompt_mapper.blocks] == [0.1, 0.1]


def test_question_is_needed() -> None:
    module = conditioner()
    assert module.needs_question == "tokens"
    with pytest.raises(ValueError, match="'original' and 'original_live' read the question"):
        module(styles())


def test_factors_are_made_in_fp32_under_autocast() -> None:
    module = conditioner()
    words, mask = question()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(styles(), words.bfloat16(), mask)
    outside = module(styles(), words.bfloat16().float(), mask)
    assert inside[1].key.dtype == torch.float32 and torch.equal(inside[1].key, outside[1].key)

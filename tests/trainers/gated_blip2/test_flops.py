"""Operations by arithmetic are those that the operators count, and at full size those of the specification."""

from __future__ import annotations

import pytest
import torch
from tiny_blip2s import N_QUERIES, SIDE_PX, random_blip2

from trainers.gated_blip2.flops import SampleCost, count_operations, sample_cost, style_cost
from trainers.gated_blip2.loading import SHAPES, read_config

GIGA = 1e9


def test_full_size() -> None:
    config = read_config(SHAPES["blip2_opt_2_7b"])
    cost = sample_cost(config, n_text=16, style=3.65 * GIGA)
    assert cost.vision / GIGA == pytest.approx(520.7, abs=0.05)
    assert cost.qformer / GIGA == pytest.approx(12.7, abs=0.05)
    assert cost.language / GIGA == pytest.approx(254.7, abs=0.05)
    assert (round(cost.cached_step / GIGA), round(cost.live_step / GIGA)) == (548, 1072)
    assert round(cost.ratio, 2) == 0.51
    wider = sample_cost(config, n_text=16, side_px=364)
    assert 677 / 257 < wider.vision / cost.vision < 1.1 * 677 / 257 and wider.language == cost.language


def test_style_encoder() -> None:
    assert style_cost("efficientnet_b3", 300) / GIGA == pytest.approx(3.65, abs=0.005)


def test_parts_cost_what_their_operators_count() -> None:
    blip2, n_text = random_blip2().eval(), 7
    cost = sample_cost(blip2.config, n_text=n_text)
    with torch.no_grad():
        pixels = torch.randn(1, 3, SIDE_PX, SIDE_PX)
        assert cost.vision == count_operations(lambda: blip2.vision_model(pixels))
        tokens = blip2.vision_model(pixels).last_hidden_state
        read = lambda: blip2.qformer(query_embeds=blip2.query_tokens, encoder_hidden_states=tokens).last_hidden_state  # noqa: E731
        assert cost.qformer == count_operations(read)
        queries = read()
        assert cost.projection == count_operations(lambda: blip2.language_projection(queries))
        embeds = torch.randn(1, N_QUERIES + n_text, 32)
        assert cost.language == count_operations(lambda: blip2.language_model(inputs_embeds=embeds))


def test_a_step_is_near_what_its_operators_count_where_all_of_the_bridge_trains() -> None:
    blip2, n_text = random_blip2().eval(), 7
    cost = sample_cost(blip2.config, n_text=n_text)
    blip2.requires_grad_(False)
    for module in (blip2.qformer, blip2.language_projection):
        module.requires_grad_(True)
    blip2.query_tokens.requires_grad_(True)
    tokens, words = torch.randn(1, 5, 32), torch.randn(1, n_text, 32)

    def step() -> None:
        read = blip2.qformer(query_embeds=blip2.query_tokens, encoder_hidden_states=tokens).last_hidden_state
        embeds = torch.cat([blip2.language_projection(read), words], dim=1)
        blip2.language_model(inputs_embeds=embeds).logits.sum().backward()

    counted = count_operations(step)
    assert 0.9 < counted / cost.cached_step < 1.1


def test_sums() -> None:
    cost = SampleCost(vision=10.0, style=1.0, qformer=2.0, projection=0.5, language=4.0)
    assert (cost.forward, cost.cached_step, cost.live_step) == (17.5, 15.5, 26.5)
    assert cost.ratio == 15.5 / 26.5 and cost.to_dict()["live_step"] == 26.5

"""Costs by arithmetic equal what the operators do, on a tiny model that runs and at the shapes of LLaVA-1.5-7B."""

from __future__ import annotations

import pytest
import torch
from split_models import build_model, encode_talks, make_split, random_images
from tiny_llavas import random_llava, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from trainers.bgobj_llava.cost import WAYS, CostModel, Request, split_patches
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions

MIB = 2**20
TFLOP = 1e12

# Object share -> TFLOP of a split request cold, with tokens, with keys and values; MiB of the prefix, of tokens.
SHARES = {
    0.05: (8.89, 8.52, 0.76, 292, 4.3),
    0.10: (8.89, 8.54, 1.17, 278, 4.1),
    0.20: (8.88, 8.58, 1.96, 249, 3.6),
    0.30: (8.88, 8.62, 2.77, 220, 3.2),
    0.50: (8.88, 8.69, 4.37, 162, 2.3),
}


def product_flops(left, right, *, out_shape=None, **unused: object) -> int:
    """Operations of a batched product; outer ones are not counted: older transformers turn positions into angles by them."""
    batch, rows, inner = left
    return 2 * batch * rows * inner * right[-1] if inner > 1 else 0


def count(work) -> float:
    """Operations of matrix products and attention, without the patch embedding's convolution."""
    mapping = {torch.ops.aten.bmm: product_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        work()
    counts = counter.get_flop_counts()["Global"]
    return float(sum(number for operator, number in counts.items() if "convolution" not in str(operator)))


def request_7b(share: float) -> Request:
    n_obj, n_bg = split_patches(576, share)
    return Request(n_bg, n_obj, n_prefix=35, n_question=25)


def test_published_figures_of_the_7b_model(seven_b) -> None:
    cost = CostModel(seven_b.config)
    found = {
        "tower, 576 patches": (cost.vision(576), 365.3e9),
        "tower, 461": (cost.vision(461), 287.5e9),
        "tower, 115": (cost.vision(115), 68.4e9),
        "projector, 576": (cost.projector(576), 24.2e9),
        "636 rows": (cost.llm.flops(636), 8.450e12),
        "640": (cost.llm.flops(640), 8.504e12),
        "498": (cost.llm.flops(498), 6.580e12),
        "142 after 498": (cost.llm.flops(142, 498) + cost.head(), 1.887e12),
        "25 after 615": (cost.llm.flops(25, 615) + cost.head(), 0.332e12),
    }
    assert {name: value for name, value in found.items() if value[0] != pytest.approx(value[1], rel=0.005)} == {}


@pytest.mark.parametrize("share", SHARES)
def test_table_of_the_7b_model(seven_b, share) -> None:
    cost, request = CostModel(seven_b.config), request_7b(share)
    cold, tokens, kv, prefix_mib, tokens_mib = SHARES[share]
    found = [cost.request(way, request, one_pass=True).total / TFLOP for way in WAYS]
    assert found == pytest.approx([8.84, cold, tokens, kv], abs=0.006)
    first, _ = cost.segment_lengths(request)
    assert cost.prefix_bytes(first, 2) / MIB == pytest.approx(prefix_mib, abs=0.6)
    assert cost.token_bytes(request.n_bg, 2) / MIB == pytest.approx(tokens_mib, abs=0.06)


def test_goals_at_a_fifth_of_objects(seven_b) -> None:
    cost, request = CostModel(seven_b.config), request_7b(0.2)
    stock, cold, tokens, kv = (cost.request(way, request).total for way in WAYS)
    assert kv / stock <= 0.23
    assert tokens / stock >= 0.95
    assert cost.vision(request.n_obj) / cost.vision(576) <= 0.20
    assert cold / stock <= 1.01


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"fusion_layers": 2, "cls": "none"}, {"sep_style": "single", "projector": "separate"}])
def test_operators_of_a_tiny_model_count_the_same(options) -> None:
    model = build_model(**options)
    images, split, (text,) = random_images(model, 1), make_split(model, [3, 4, 7]), encode_talks(model, 0, answered=False)
    cost = CostModel(model.llava.config, model.options)
    request = Request(13, 3, n_prefix=len(text.prefix), n_question=len(text.rest))
    encoded = model.encode(images, split, "gather")[0]
    segments, state = model.build_segments(encoded, text), model.new_state()
    assert cost.segment_lengths(request) == (len(segments.s0), len(segments.suffix))

    def read(segment) -> float:
        return count(lambda: model.logits(model.prefill(segment, state)[-1:]))

    first, second = read(segments.s0) - cost.head(), read(segments.suffix)
    bg = count(lambda: model.encode_group(images, encoded.bg_index, "bg"))
    obj = count(lambda: model.encode_group(images, encoded.obj_index, "obj"))
    assert bg + obj == count(lambda: model.encode(images, split, "gather"))
    assert cost.request("cold", request).total == bg + obj + first + second
    assert cost.request("tokens", request).total == obj + first + second
    assert cost.request("kv", request).total == obj + second
    assert cost.saved(13, "tokens", len(text.prefix)) == pytest.approx(bg)
    assert cost.saved_by(len(text.prefix))(13, "kv") == pytest.approx(bg + first)


@torch.no_grad()
def test_operators_of_a_stock_model_count_the_same() -> None:
    model = build_model(split="none")
    images, (text,) = random_images(model, 1), encode_talks(model, 0, answered=False)
    cost = CostModel(model.llava.config, model.options)
    whole = count(lambda: model.llava(**model.stock_inputs(images, [text]), logits_to_keep=1))
    unused = cost.tower.flops(17) / cost.tower.n_blocks  # Hugging Face runs the block after the features too
    assert cost.stock(len(text.prefix), len(text.rest)).total == whole - unused
    request = Request(13, 3, n_prefix=len(text.prefix), n_question=len(text.rest))
    assert all(cost.request(way, request) == cost.stock(len(text.prefix), len(text.rest)) for way in WAYS)


@torch.no_grad()
def test_operators_of_grouped_heads_count_the_same() -> None:
    llava, _ = random_llava()
    config = llava.config
    config.text_config.num_key_value_heads = 2
    model = BgObjLlava(type(llava)(config).eval(), tiny_tokenizer())
    state = model.new_state()
    rows = torch.zeros(20, dtype=torch.int64)
    found = count(lambda: model.prefill(model.token_segment(rows, 0), state))
    cost = CostModel(config)
    assert cost.llm.flops(20) == found
    assert cost.prefix_bytes(20, 4) == sum(tensor.nbytes for pair in state.pairs()["llm"] for tensor in pair)


@torch.no_grad()
def test_operators_at_the_shapes_of_7b_count_the_same(seven_b) -> None:
    """The tower alone and one prefill, on the meta device."""
    model = BgObjLlava(seven_b, tiny_tokenizer(), ModelOptions(fusion_layers=1))
    cost = CostModel(seven_b.config, model.options)
    images, index = torch.empty(1, 3, 336, 336, device="meta"), torch.arange(115)
    assert count(lambda: model.encode_group(images, index, "obj")) == cost.vision(115) + cost.projector(115)
    segment, state = model.token_segment(torch.zeros(640, dtype=torch.int64, device="meta"), 0), model.new_state()
    found = count(lambda: model.logits(model.prefill(segment, state)[-1:]))
    assert found == cost.llm.flops(640) + cost.fusion.flops(640) + cost.head()


def test_separators_come_with_their_groups() -> None:
    cost = CostModel(build_model().llava.config)
    assert cost.segment_lengths(Request(10, 6, 5, 7)) == (17, 15)
    assert cost.segment_lengths(Request(0, 16, 5, 7)) == (5, 25)
    assert cost.segment_lengths(Request(16, 0, 5, 7)) == (23, 7)
    single = CostModel(build_model().llava.config, ModelOptions(sep_style="single"))
    assert [single.segment_lengths(Request(10, n_obj, 5, 7))[0] for n_obj in (0, 6)] == [15, 16]


def test_a_shared_pass_of_the_tower_is_not_saved() -> None:
    cost = CostModel(build_model().llava.config, ModelOptions(split="order_only"))
    assert cost.request("cold", Request(10, 6, 5, 7)).vision == cost.vision(16)


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="the way is 'warm'; expected one of stock, cold, tokens, kv"):
        CostModel(build_model().llava.config).request("warm", Request(1, 1, 1, 1))


@torch.no_grad()
def test_tiny_counts_see_a_wrong_split(monkeypatch) -> None:
    """A patch more in the pass is a different number, so equality above means something."""
    model = build_model()
    index = torch.arange(3)
    found = count(lambda: model.encode_group(random_images(model, 1), index, "obj"))
    cost = CostModel(model.llava.config)
    assert found == cost.vision(3) + cost.projector(3) != cost.vision(4) + cost.projector(4)


def test_answers_from_the_cache_say_what_they_saved(make_trainer) -> None:
    trainer = make_trainer("BgObjLLaVA", {".MASK.NO_DETECTION": "bg_only"})
    trainer.start_answers(trainer.dm.dataset.test)
    asked, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    trainer.model_inference(asked)
    rows = trainer.model_inference(asked)
    cost = CostModel(trainer.model.llava.config, trainer.model.options)
    n_prefix = len(trainer.system.encoder.encode([("where?", None)]).prefix)
    assert any(row["hit"] == "kv" for row in rows)
    assert [row["flops_saved"] for row in rows] == [
        cost.saved(row["n_bg"], row["hit"], n_prefix) if row["hit"] else 0.0 for row in rows
    ]

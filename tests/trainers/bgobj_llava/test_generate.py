"""Answers: warm equals cold bit by bit, batches equal single ones, Hugging Face's generate agrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from answer_worlds import (
    QUESTIONS,
    SMALLEST,
    answer,
    generator,
    new_cache,
    normalised,
    picture,
    raw_mask,
    same,
    small_model,
    split_at,
    split_of,
    with_objects,
)

from trainers.bgobj_llava.cache.match import NO_CANDIDATE, OBJECT_INSIDE
from trainers.bgobj_llava.generate import AuditError
from trainers.bgobj_llava.geometry import stock_split
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder

SCENE = picture(0)


@pytest.fixture(scope="module")
def model() -> BgObjLlava:
    """Shared by tests that do not change it."""
    return small_model()


@pytest.mark.parametrize("mode", ["tokens", "kv"])
@pytest.mark.parametrize("fusion_layers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("position", ["sequential", "raster"])
def test_warm_equals_cold_at_the_same_split_bit_by_bit(
    position: str, attn: str, dtype: torch.dtype, fusion_layers: int, mode: str
) -> None:
    model = small_model(dtype, attn, position=position, fusion_layers=fusion_layers)
    cache = new_cache(mode=mode)
    warm, cold = generator(model, cache), generator(model)
    first = answer(warm, SCENE, split_of(5, 6, 9, 10))
    stored = {key: value.clone() for key, value in stored_tensors(cache).items()}
    assert first.trace["hit"] == "" and len(stored) == 1 + (2 * (3 + fusion_layers) if mode == "kv" else 0)
    for number, patches in enumerate([(5,), (6, 9), (10,)]):
        pixels, question = with_objects(SCENE, raw_mask(*patches), number + 7), QUESTIONS[number]
        found = answer(warm, pixels, split_of(*patches), question)
        assert (found.trace["hit"], found.trace["n_bg"], found.trace["n_obj"]) == (mode, 12, 4)
        assert same(found, answer(cold, pixels, split_at(found.cached), question))
    assert all(torch.equal(value, stored[key]) for key, value in stored_tensors(cache).items())


def stored_tensors(cache) -> dict[str, torch.Tensor]:
    (key,) = cache._tiers.memory[0].keys()
    return cache._tiers.memory[0][key].payload.flat()


@pytest.mark.parametrize("style", ["single", "none"])
def test_warm_equals_cold_with_other_separators(style: str) -> None:
    model = small_model(sep_style=style, position="raster", projector="separate", cls="none")
    cache = new_cache()
    answer(generator(model, cache), SCENE, split_of(0, 1))
    found = answer(generator(model, cache), SCENE, split_of(1), QUESTIONS[1])
    assert found.trace["hit"] == "kv" and same(found, answer(generator(model), SCENE, split_of(0, 1), QUESTIONS[1]))


def test_a_background_without_objects_is_answered_from_text_alone(model: BgObjLlava) -> None:
    cache = new_cache()
    whole = split_at(~raw_mask())
    whole = replace(whole, objects=raw_mask(), ring=raw_mask())
    answer(generator(model, cache), SCENE, whole)
    found = answer(generator(model, cache), SCENE, whole, QUESTIONS[1])
    assert (found.trace["hit"], found.trace["n_bg"], found.trace["n_obj"]) == ("kv", 16, 0)
    assert same(found, answer(generator(model), SCENE, whole, QUESTIONS[1]))


def test_the_ring_of_a_hit_is_that_of_its_own_background(model: BgObjLlava) -> None:
    cache = new_cache()
    warm = generator(model, cache, overlap_ring=1)
    answer(warm, SCENE, split_of(0, 1, 4, 5, ring=1))
    found = answer(warm, SCENE, split_of(0, ring=1), QUESTIONS[1])
    assert (found.trace["hit"], found.trace["n_bg"], found.trace["n_obj"]) == ("kv", 12, 9)
    assert same(found, answer(generator(model), SCENE, split_of(0, 1, 4, 5, ring=1), QUESTIONS[1]))


def test_identical_cache_on_equals_off_on_two_hundred_requests() -> None:
    model, cache = small_model(sizes=SMALLEST), new_cache(match="identical")
    on, off, rng = generator(model, cache, 1), generator(model, None, 1), np.random.default_rng(0)
    flips = hits = 0
    for number in range(200):
        raw = raw_mask(*[(5,), (5, 6), (9,)][int(rng.integers(3))])
        pixels = with_objects(picture(int(rng.integers(5))), raw, number)
        split, question = split_of(*np.flatnonzero(raw)), QUESTIONS[number % 3]
        found = answer(on, pixels, split, question)
        hits += bool(found.trace["hit"])
        flips += not same(found, answer(off, pixels, split, question))
    assert flips == 0 and hits == 200 - 15


def test_contained_never_differs_from_recomputation_at_the_split_used() -> None:
    model, cache = small_model(sizes=SMALLEST), new_cache()
    on, off, rng = generator(model, cache, 2), generator(model, None, 2), np.random.default_rng(0)
    wrong = hits = 0
    for number in range(40):
        raw = raw_mask(*[(5,), (5, 6), (9, 10), (0,)][int(rng.integers(4))])
        pixels = with_objects(picture(int(rng.integers(3))), raw, number)
        found = answer(on, pixels, split_of(*np.flatnonzero(raw), dilate=1), QUESTIONS[number % 3])
        if found.trace["hit"]:
            hits += 1
            wrong += not same(found, answer(off, pixels, split_at(found.cached), QUESTIONS[number % 3]))
    assert wrong == 0 and hits > 12


def test_an_object_that_moves_onto_the_background_is_a_miss_and_joins_the_cache(model: BgObjLlava) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    answer(asked, with_objects(SCENE, raw_mask(5), 1), split_of(5))
    moved = with_objects(SCENE, raw_mask(15), 1)
    found = answer(asked, moved, split_of(15))
    assert found.trace["hit"] == "" and found.trace["miss"] in (OBJECT_INSIDE, NO_CANDIDATE) and len(cache) == 2
    assert same(found, answer(generator(model), moved, split_of(15)))


def test_pictures_do_not_answer_for_one_another(model: BgObjLlava) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    for seed in range(6):
        found = answer(asked, picture(seed), split_of(5), stream_id="camera")
        assert found.trace["hit"] == "" and same(found, answer(generator(model), picture(seed), split_of(5)))
    assert len(cache) == 6


def test_tokens_from_disk_become_keys_and_values_in_memory(model: BgObjLlava, tmp_path) -> None:
    folder = {"folder": str(tmp_path), "disk_gib": 1.0, "disk_kv": "never"}
    cache = new_cache(**folder)
    answer(generator(model, cache), SCENE, split_of(5))
    cache.close()
    asked = generator(model, new_cache(**folder))
    found = [answer(asked, SCENE, split_of(5), QUESTIONS[1]) for _ in range(2)]
    assert [(each.trace["hit"], each.trace["tier"]) for each in found] == [("tokens", "disk"), ("kv", "device")]
    cold = answer(generator(model), SCENE, split_of(5), QUESTIONS[1])
    assert same(found[0], cold) and same(found[1], cold)


def test_similar_tokens_from_disk_are_never_stored_for_this_picture(model: BgObjLlava, tmp_path) -> None:
    folder = {"folder": str(tmp_path), "disk_gib": 1.0, "disk_kv": "never", "match": "approx", "tau": 3.0}
    cache, scene = new_cache(**folder), SCENE // 2
    answer(generator(model, cache), scene, split_of(5))
    cache.close()
    cache = new_cache(**folder)
    similar = scene + np.uint8(2)
    for tier in ("disk", "device"):
        found = answer(generator(model, cache), similar, split_of(5)).trace
        assert (found["hit"], found["tier"], found["exact"]) == ("tokens", tier, False)
        assert cache.counters.stored == 0 and len(cache) == 1
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == 1


def test_keys_and_values_from_disk_give_the_same_bits(model: BgObjLlava, tmp_path) -> None:
    cache = new_cache(folder=str(tmp_path), disk_gib=1.0)
    answer(generator(model, cache), SCENE, split_of(5))
    cache.close()
    found = answer(generator(model, new_cache(folder=str(tmp_path), disk_gib=1.0)), SCENE, split_of(5), QUESTIONS[2])
    assert (found.trace["hit"], found.trace["tier"]) == ("kv", "disk")
    assert same(found, answer(generator(model), SCENE, split_of(5), QUESTIONS[2]))


def test_isolated_tokens_in_raster_order_can_be_cached_but_no_prefix() -> None:
    model = small_model(split="isolate_only")
    with pytest.raises(ValueError, match="SPLIT isolate_only the background is no prefix"):
        generator(model, new_cache())
    cache = new_cache(mode="tokens")
    answer(generator(model, cache), SCENE, split_of(5))
    found = answer(generator(model, cache), SCENE, split_of(5), QUESTIONS[1])
    assert found.trace["hit"] == "tokens" and same(found, answer(generator(model), SCENE, split_of(5), QUESTIONS[1]))


@pytest.mark.parametrize("mode", ["tokens", "kv"])
def test_tokens_that_saw_the_objects_are_not_cached(mode: str) -> None:
    with pytest.raises(ValueError, match="SPLIT order_only background tokens have seen the objects"):
        generator(small_model(split="order_only"), new_cache(mode=mode))


def test_stock_order_and_training_leave_the_cache_alone(model: BgObjLlava) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    stock = answer(asked, SCENE, stock_split(raw_mask(), detected=False))
    assert (stock.trace["n_bg"], stock.trace["n_obj"]) == (0, 16)
    model.train()
    try:
        answer(asked, SCENE, split_of(5))
    finally:
        model.eval()
    assert cache.counters.requests == 0 and len(cache) == 0


def test_hidden_background_is_not_asked_for(model: BgObjLlava) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    answer(asked, SCENE, split_of(5))
    model.visible = {"obj"}
    try:
        assert answer(asked, SCENE, split_of(5)).trace["n_bg"] == 0
        model.visible = {"bg"}
        found = answer(asked, SCENE, split_of(5))
        assert found.trace["hit"] == "" and found.trace["n_obj"] == 0  # the prefix was computed with objects to come
    finally:
        model.visible = {"bg", "obj"}
    assert cache.counters.requests == 2


def test_approximate_answers_say_so(model: BgObjLlava) -> None:
    cache = new_cache(match="approx", tau=3.0)
    asked, scene = generator(model, cache), SCENE // 2
    answer(asked, scene, split_of(5))
    found = answer(asked, scene + np.uint8(2), split_of(5)).trace
    assert (found["hit"], found["exact"], found["drift"]) == ("kv", False, 2.0)
    exact = answer(asked, scene, split_of(5)).trace
    assert (exact["hit"], exact["exact"], exact["drift"]) == ("kv", True, 0.0)


@pytest.mark.parametrize("mode", ["tokens", "kv"])
def test_an_audit_stops_on_a_difference(model: BgObjLlava, mode: str) -> None:
    cache = new_cache(audit_every=2, mode=mode)
    asked = generator(model, cache)
    for _ in range(4):
        answer(asked, SCENE, split_of(5))
    assert cache.counters.audits == 1
    last = sorted(stored_tensors(cache))[-1]
    stored_tensors(cache)[last].view(-1)[0] += 1e-3
    with pytest.raises(AuditError, match=f"1 of {len(stored_tensors(cache))} tensors: {last}"):
        answer(asked, SCENE, split_of(5))
    assert cache.n_pinned == 0


def test_batches_equal_single_answers(model: BgObjLlava) -> None:
    splits = [split_of(5), split_of(0, 1, 2, 3, 4, 5), stock_split(raw_mask()), split_of(*range(16))]
    questions = [QUESTIONS[0], "where is it?", QUESTIONS[1], "red?"]
    pixels = [picture(seed) for seed in range(4)]
    single = [answer(generator(model, None, 6), *each) for each in zip(pixels, splits, questions, strict=True)]
    batch = generator(model, None, 6).answer_batch(torch.stack([normalised(each) for each in pixels]), splits, questions)
    assert [each.ids for each in batch] == [each.ids for each in single]
    assert len({tuple(each.ids) for each in single}) > 1
    for left, right in zip(batch, single, strict=True):
        assert torch.allclose(left.logits_first, right.logits_first, rtol=0, atol=1e-5 * float(right.logits_first.abs().max()))
        assert (left.trace["n_bg"], left.trace["n_obj"]) == (right.trace["n_bg"], right.trace["n_obj"])


@pytest.mark.parametrize(("position", "fusion_layers"), [("raster", 0), ("sequential", 2), ("raster", 2)])
def test_batches_equal_single_answers_with_fusion_and_raster(position: str, fusion_layers: int) -> None:
    model = small_model(position=position, fusion_layers=fusion_layers)
    splits, pixels = [split_of(5), split_of(0, 1, 2, 3)], [picture(1), picture(2)]
    questions = ["where is it?", "what colour is the large red circle of the two?"]
    single = [answer(generator(model), *each) for each in zip(pixels, splits, questions, strict=True)]
    batch = generator(model).answer_batch(torch.stack([normalised(each) for each in pixels]), splits, questions)
    assert [each.ids for each in batch] == [each.ids for each in single]


def test_hugging_faces_generate_on_our_rows_says_the_same(model: BgObjLlava) -> None:
    pixels, split = picture(3), split_of(5, 6)
    own = answer(generator(model, None, 6), pixels, split)
    text = PromptEncoder(model.tokenizer).encode([(QUESTIONS[0], None)])
    batch = SplitBatch.of(torch.from_numpy(split.objects)[None])
    with torch.no_grad():
        (encoded,) = model.encode(normalised(pixels)[None], batch)
        rows = model.build_segments(encoded, text).whole
        ids = model.llava.generate(
            inputs_embeds=rows.embeds[None], attention_mask=torch.ones(1, len(rows), dtype=torch.long), max_new_tokens=6,
            do_sample=False, suppress_tokens=list(model.suppressed_ids), eos_token_id=model.info.eos_id,
        )  # fmt: skip
    assert generator(model)._decoder.finish(ids[0].tolist()).ids == own.ids


def test_without_a_split_hugging_face_answers() -> None:
    model = small_model(split="none", sep_style="single", position="raster", fusion_layers=2, projector="separate")
    pixels, asked = [picture(1), picture(2)], generator(model, new_cache(), 5)
    assert asked.cache is None
    encoder = PromptEncoder(model.tokenizer)
    for picked, question in zip(pixels, QUESTIONS, strict=False):
        text = encoder.encode([(question, None)])
        ids = torch.cat([text.prefix, torch.full((16,), model.info.image_id), text.rest])[None]
        with torch.no_grad():
            output = model.llava.generate(
                input_ids=ids, pixel_values=normalised(picked)[None], attention_mask=torch.ones_like(ids),
                max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        own = answer(asked, picked, stock_split(raw_mask()), question)
        assert own.ids == output.sequences[0, ids.shape[1] :].tolist() and len(own.ids) == 5
        assert torch.equal(own.logits_first, output.logits[0][0])
    images, stock = torch.stack([normalised(each) for each in pixels]), [stock_split(raw_mask())] * 2
    batch = asked.answer_batch(images, stock, QUESTIONS[:2])
    single = [answer(asked, *each) for each in zip(pixels, stock, QUESTIONS, strict=False)]
    assert [each.ids for each in batch] == [each.ids for each in single]
    assert all(each.trace["seconds"]["vit"] > 0 and each.trace["ttft_s"] > 0 for each in [*batch, *single])


def test_an_answer_ends_at_the_end_token(model: BgObjLlava) -> None:
    whole = answer(generator(model, None, 6), SCENE, split_of(5))
    assert whole.truncated and len(whole.ids) == 6
    end = next(each for each in whole.ids if whole.ids.index(each) > 0)
    info = model.info
    model.info = replace(info, eos_id=end)
    try:
        short = answer(generator(model, None, 6), SCENE, split_of(5))
        (batched,) = generator(model, None, 6).answer_batch(normalised(SCENE)[None], [split_of(5)], [QUESTIONS[0]])
        assert short.ids == batched.ids == whole.ids[: whole.ids.index(end)] and not short.truncated
    finally:
        model.info = info


def test_suppressed_tokens_are_never_said() -> None:
    model = small_model()
    first = answer(generator(model), SCENE, split_of(5))
    loud = first.ids[0]
    with torch.no_grad():  # the image token now always scores twice as much as the best word
        weight = model.llava.lm_head.weight
        weight[model.info.image_id] = 2 * weight[loud]
    later = answer(generator(model), SCENE, split_of(5))
    assert int(later.logits_first.argmax()) == model.info.image_id
    assert model.info.image_id not in later.ids and later.ids[0] == loud


def test_suppression_holds_for_every_token_of_single_answers_and_batches(model: BgObjLlava) -> None:
    whole, asked = answer(generator(model, None, 6), SCENE, split_of(5)), generator(model, None, 6)
    banned = next(each for each in whole.ids if whole.ids.index(each) > 0)
    asked._decoder._suppressed = torch.cat([asked._decoder._suppressed, torch.tensor([banned])])
    (batched,) = asked.answer_batch(normalised(SCENE)[None], [split_of(5)], [QUESTIONS[0]])
    single = answer(asked, SCENE, split_of(5))
    assert single.ids == batched.ids != whole.ids and banned not in single.ids
    assert single.ids[0] == whole.ids[0] and torch.equal(single.logits_first, whole.logits_first)


def test_the_trace_accounts_for_the_time(model: BgObjLlava) -> None:
    found = answer(generator(model), SCENE, split_of(5), seconds={"preprocess": 2.0, "detect": 3.0}).trace
    seconds = found["seconds"]
    before = sum(value for name, value in seconds.items() if name not in ("decode", "store"))
    assert found["ttft_s"] == pytest.approx(before) and before > 5
    assert all(seconds[name] > 0 for name in ("vit", "projector", "prefill", "decode"))
    assert seconds["fusion"] == 0 and seconds["decode"] < 5


def test_saved_operations_are_in_the_trace(model: BgObjLlava) -> None:
    cache = new_cache()
    cache._saved_flops = lambda n_bg, level: 100.0 * n_bg
    asked = generator(model, cache)
    traces = [answer(asked, SCENE, split_of(5)).trace for _ in range(2)]
    assert [each["flops_saved"] for each in traces] == [0.0, 1500.0]


def test_an_error_releases_the_entry(model: BgObjLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache()
    asked = generator(model, cache)
    answer(asked, SCENE, split_of(5))

    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(asked._decoder, "follow", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(asked, SCENE, split_of(5))
    assert cache.n_pinned == 0

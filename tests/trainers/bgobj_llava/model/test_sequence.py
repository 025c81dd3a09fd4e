"""Order, separators and positions of what the language model reads."""

from __future__ import annotations

import pytest
import torch
from split_models import build_model, encode_talks, make_split, random_images, random_split
from tiny_llavas import random_llava, tiny_tokenizer

from trainers.bgobj_llava.model.batches import pad_right
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import IGNORED
from trainers.bgobj_llava.model.separators import WORDS, add_separators, build_separators
from trainers.bgobj_llava.model.sequence import BACKGROUND, OBJECT, SEPARATOR, TEXT, longest_length

OBJECTS = [5, 6, 9]
BACKGROUND_PATCHES = [number for number in range(16) if number not in OBJECTS]


def arrange(objects: list[int] | None = None, *, stock: bool = False, ring: list[int] | None = None, visible=None, **options):
    """Segments of one image and question, with the model that made them."""
    options = {"vit_eval": "gather"} | options
    model = build_model(**options)
    splits = make_split(model, OBJECTS if objects is None else objects)
    if ring:
        splits.ring[0, ring] = True
    splits = SplitBatch(splits.objects, splits.ring, torch.tensor([stock]))
    if visible is not None:
        model.visible = visible
    with torch.no_grad():
        encoded = model.encode(random_images(model, 1), splits)[0]
        segments = model.build_segments(encoded, encode_talks(model, 0)[0])
    return model, encoded, segments


def n_text(model) -> tuple[int, int]:
    text = encode_talks(model, 0)[0]
    return len(text.prefix), len(text.rest)


def test_background_comes_first_then_objects_then_text() -> None:
    model, encoded, segments = arrange()
    n0, n2 = n_text(model)
    ids, image = model.info.separator_ids, model.info.image_id
    assert segments.s0.ids[n0:].tolist() == [ids["bg_start"], *[image] * 13, ids["bg_end"]]
    assert segments.s1.ids.tolist() == [ids["obj_start"], image, image, image, ids["obj_end"]]
    assert segments.s0.types.tolist() == [TEXT] * n0 + [SEPARATOR] + [BACKGROUND] * 13 + [SEPARATOR]
    assert segments.s1.types.tolist() == [SEPARATOR] + [OBJECT] * 3 + [SEPARATOR]
    assert segments.s2.types.tolist() == [TEXT] * n2
    assert torch.equal(segments.s0.embeds[n0 + 1 : -1], encoded.bg)
    assert torch.equal(segments.s1.embeds[1:-1], encoded.obj)
    assert encoded.bg_index.tolist() == BACKGROUND_PATCHES and encoded.obj_index.tolist() == OBJECTS
    table = model.separators.table
    assert torch.equal(torch.stack([segments.s0.embeds[n0], segments.s0.embeds[-1]]), table[:2])
    assert torch.equal(torch.stack([segments.s1.embeds[0], segments.s1.embeds[-1]]), table[2:])


def test_text_rows_are_the_models_embeddings_and_bypass_starts_at_the_answer() -> None:
    model, _, segments = arrange()
    text = encode_talks(model, 0)[0]
    embedding = model.llava.get_input_embeddings()
    assert torch.equal(segments.s0.embeds[: len(text.prefix)], embedding(text.prefix))
    assert torch.equal(segments.s2.embeds, embedding(text.rest))
    assert segments.s2.bypass == text.first_answer < len(text.rest)
    assert segments.s0.bypass == len(segments.s0) and segments.s1.bypass == len(segments.s1)
    assert segments.whole.bypass == len(segments.s0) + len(segments.s1) + text.first_answer
    assert segments.suffix.bypass == len(segments.s1) + text.first_answer


@pytest.mark.parametrize("style", ["pairs", "single", "none"])
def test_sequential_positions_count_rows(style) -> None:
    _, _, segments = arrange(sep_style=style)
    assert segments.whole.positions.tolist() == list(range(len(segments)))
    assert segments.next_position == len(segments)


@pytest.mark.parametrize(("style", "k0", "k"), [("pairs", 1, 4), ("single", 0, 1), ("none", 0, 0)])
def test_raster_positions_are_the_places_in_the_image(style, k0, k) -> None:
    model, _, segments = arrange(sep_style=style, position="raster")
    (p0, n2), whole = n_text(model), segments.whole
    assert whole.positions[whole.types == BACKGROUND].tolist() == [p0 + k0 + number for number in BACKGROUND_PATCHES]
    assert whole.positions[whole.types == OBJECT].tolist() == [p0 + k0 + number for number in OBJECTS]
    assert segments.s2.positions.tolist() == list(range(p0 + 16 + k, p0 + 16 + k + n2))
    slots = {"pairs": [p0, p0 + 17, p0 + 18, p0 + 19], "single": [p0 + 16], "none": []}
    assert whole.positions[whole.types == SEPARATOR].tolist() == slots[style]
    assert len(set(whole.positions.tolist())) == len(whole)


@pytest.mark.parametrize("objects", [[], list(range(16))], ids=["no object", "only objects"])
@pytest.mark.parametrize("style", ["pairs", "single"])
def test_an_empty_group_has_no_separators_but_text_keeps_its_place(objects, style) -> None:
    model, encoded, segments = arrange(objects, sep_style=style, position="raster")
    n_separators = int((segments.whole.types == SEPARATOR).sum())
    assert n_separators == {"pairs": 2, "single": 0}[style]
    assert (len(segments.s1) == 0) == (objects == [])
    assert encoded.obj.shape == (len(objects), 96) and encoded.bg.shape == (16 - len(objects), 96)
    p0, k = len(encode_talks(model, 0)[0].prefix), {"pairs": 4, "single": 1}[style]
    assert segments.s2.positions[0] == p0 + 16 + k
    if style == "pairs":
        kept = {"obj_start", "obj_end"} if objects else {"bg_start", "bg_end"}
        wanted = {model.info.separator_ids[name] for name in kept}
        assert set(segments.whole.ids[segments.whole.types == SEPARATOR].tolist()) == wanted


def test_single_separator_ends_the_background() -> None:
    model, _, segments = arrange(sep_style="single")
    assert segments.s0.ids[-1] == model.info.separator_ids["bg_obj"]
    assert (segments.s1.types == OBJECT).all()


@pytest.mark.parametrize("case", [{"split": "isolate_only"}, {"stock": True}, {"stock": True, "position": "raster"}])
def test_stock_order_has_raster_order_and_no_separators(case) -> None:
    model, encoded, segments = arrange(**case)
    p0 = len(encode_talks(model, 0)[0].prefix)
    assert len(segments.s0) == p0 and len(segments.s1) == 16
    assert torch.equal(segments.s1.embeds[OBJECTS], encoded.obj)
    assert torch.equal(segments.s1.embeds[BACKGROUND_PATCHES], encoded.bg)
    assert segments.whole.positions.tolist() == list(range(len(segments)))


def test_ring_patches_stand_in_both_groups_at_one_raster_position() -> None:
    model, encoded, segments = arrange(ring=[4, 7], position="raster")
    whole = segments.whole
    assert encoded.obj_index.tolist() == [4, 5, 6, 7, 9] and encoded.bg_index.tolist() == BACKGROUND_PATCHES
    shared = whole.positions[whole.types == BACKGROUND][torch.isin(encoded.bg_index, torch.tensor([4, 7]))]
    assert shared.tolist() == whole.positions[whole.types == OBJECT][[0, 3]].tolist()
    _, encoded, segments = arrange(ring=[4, 7], split="isolate_only")
    assert len(segments.s1) == 16 and torch.equal(segments.s1.embeds[4], encoded.bg[4])


@pytest.mark.parametrize("split", ["bgobj", "isolate_only"])
def test_hidden_groups_have_no_tokens(split) -> None:
    for visible, kinds in ((["bg"], {BACKGROUND}), (["obj"], {OBJECT}), ([], set())):
        _, _, segments = arrange(split=split, visible=visible)
        found = set(segments.whole.types.tolist()) - {TEXT, SEPARATOR}
        assert found == kinds
        n_separators = int((segments.whole.types == SEPARATOR).sum())
        assert n_separators == (2 * len(visible) if split == "bgobj" else 0)


def test_hiding_nothing_else() -> None:
    with pytest.raises(ValueError, match="background"):
        arrange(visible=["background"])
    with pytest.raises(ValueError, match="SPLIT"):
        arrange(visible=["bg"], split="none")


@pytest.mark.parametrize("position", ["sequential", "raster"])
@pytest.mark.parametrize("style", ["pairs", "single"])
def test_s0_does_not_depend_on_the_objects(position, style) -> None:
    """A background that is found again was read with other objects."""
    segments = arrange(position=position, sep_style=style)[2]
    other = arrange(position=position, sep_style=style, ring=[4])[2]
    assert len(segments.s1) != len(other.s1)
    for column in ("positions", "embeds", "ids"):
        assert torch.equal(getattr(segments.s0, column), getattr(other.s0, column))


def test_padding_keeps_rows_labels_and_bypass() -> None:
    model = build_model()
    texts = encode_talks(model, 0, 1)
    with torch.no_grad():
        encoded = model.encode(random_images(model, 2), random_split(model, 2))
        wholes = [model.build_segments(*pair).whole for pair in zip(encoded, texts, strict=True)]
    batch = pad_right(wholes, [text.labels for text in texts])
    assert batch.mask.sum(dim=1).tolist() == [len(whole) for whole in wholes]
    assert batch.fused.sum(dim=1).tolist() == [whole.bypass for whole in wholes]
    for row, whole, text in zip(range(2), wholes, texts, strict=True):
        assert torch.equal(batch.embeds[row][batch.mask[row]], whole.embeds)
        assert torch.equal(batch.positions[row][batch.mask[row]], whole.positions)
        own = batch.labels[row]
        assert own[own != IGNORED].tolist() == text.labels[text.labels != IGNORED].tolist()
        assert torch.equal(own[own != IGNORED], whole.ids[(own != IGNORED)[: len(whole)].nonzero().flatten()])


def test_longest_length_holds_for_every_split() -> None:
    for style in ("pairs", "single", "none"):
        model, _, segments = arrange(sep_style=style)
        assert longest_length(encode_talks(model, 0)[0], 16, model.options) == len(segments)


def test_separator_ids_follow_the_tokenizers_and_survive_a_second_build() -> None:
    base, tokenizer = random_llava()
    before = len(tokenizer)
    extended, ids = add_separators(tokenizer, "pairs", base.get_input_embeddings().num_embeddings)
    assert list(ids.values()) == list(range(before, before + 4)) and len(tokenizer) == before
    assert extended.convert_ids_to_tokens(before) == "<bg_start>"
    again, same = add_separators(extended, "pairs", before + 4)
    assert again is extended and same == ids
    question = "where is it ?"
    assert extended(question)["input_ids"] == tokenizer(question)["input_ids"]


def test_too_few_spare_rows_are_an_error() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"SEP.STYLE is 'pairs', which needs 4 token ids from 76 on.*78 rows"):
        add_separators(tokenizer, "pairs", 78)
    assert add_separators(tokenizer, "single", 78)[1] == {"bg_obj": 76}


def test_separators_start_as_the_mean_of_their_words() -> None:
    model = build_model(llava={"dtype": torch.bfloat16})
    weight = model.llava.get_input_embeddings().weight.float()
    for row, (name, number) in zip(model.separators.table, model.info.separator_ids.items(), strict=True):
        ids = model.tokenizer(WORDS[name], add_special_tokens=False)["input_ids"]
        assert len(ids) == len(WORDS[name].split()) and number >= model.info.n_tokens
        assert (row - weight[ids].mean(dim=0)).abs().max() < 1e-6
    assert model.separators.table.dtype == torch.float32


def test_random_separators_are_seeded_and_spread_like_the_embedding() -> None:
    base, tokenizer = random_llava()
    tokenizer, ids = add_separators(tokenizer, "pairs", 84)
    embedding = base.get_input_embeddings()
    first, same, other = (
        build_separators(embedding, tokenizer, ids, init="random", seed=seed).table for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert abs(first.std() / embedding.weight.std() - 1) < 0.15


def test_suppressed_ids_are_what_no_answer_may_hold() -> None:
    model = build_model()
    info = model.info
    kept = set(range(info.vocab_rows)) - set(model.suppressed_ids)
    assert kept == set(range(info.vocab_rows)) - {info.image_id, info.pad_id} - set(range(info.n_tokens, info.vocab_rows))
    assert info.eos_id in kept and set(info.separator_ids.values()).isdisjoint(kept)
    assert build_model(split="none").suppressed_ids == ()


def test_options_list_all_problems() -> None:
    with pytest.raises(ValueError) as caught:
        ModelOptions(split="both", cls="two", fusion_layers=5)
    for part in ("SPLIT is 'both'", "CLS is 'two'", "FUSION.LAYERS is 5; expected 0..4"):
        assert part in str(caught.value)

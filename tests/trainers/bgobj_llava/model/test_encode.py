"""Split images through the frozen tower: isolation, equality with Hugging Face, and the two ways to run it."""

from __future__ import annotations

import pytest
import torch
from split_models import build_model, make_split, paint_objects, random_images, random_split, relative_error
from tiny_llavas import tiny_tokenizer
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from trainers.bgobj_llava.model import encode
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions

EXECUTIONS = ["mask", "gather"]


def everything(model: BgObjLlava, n_images: int) -> SplitBatch:
    return SplitBatch.of(torch.ones(n_images, model.info.n_patches, dtype=torch.bool))


@pytest.fixture(scope="module")
def model() -> BgObjLlava:
    return build_model()


@torch.no_grad()
def encode_bg(model: BgObjLlava, images, splits, execution: str) -> torch.Tensor:
    return torch.cat([image.bg for image in model.encode(images, splits, execution)])


@torch.no_grad()
def encode_obj(model: BgObjLlava, images, splits, execution: str) -> torch.Tensor:
    return torch.cat([image.obj for image in model.encode(images, splits, execution)])


# -- equality with Hugging Face -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("n_images", [1, 2])
@torch.no_grad()
def test_one_group_with_all_patches_has_hugging_faces_features_bit_by_bit(seed, attn, n_images) -> None:
    model = build_model(llava={"seed": seed, "attn": attn}, sep_style="none")
    images = random_images(model, n_images, seed)
    tower = model.llava.model.vision_tower
    expected = tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    every = torch.arange(16)
    assert torch.equal(model._vision.encode_whole(images), expected)
    assert torch.equal(torch.stack(model._vision.encode_parts(images, [every] * n_images)), expected)
    tokens = torch.stack(model.llava.get_image_features(pixel_values=images).pooler_output)
    assert torch.equal(encode_obj(model, images, everything(model, n_images), "gather").view_as(tokens), tokens)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("options", "stock"), [({"split": "order_only"}, [False, False]), ({}, [True, False, True])])
@torch.no_grad()
def test_order_only_and_stock_order_see_the_whole_image(options, stock, execution) -> None:
    model = build_model(**options)
    images, splits = random_images(model, len(stock)), random_split(model, len(stock))
    splits = SplitBatch(splits.objects, splits.ring, torch.tensor(stock))
    tokens = torch.stack(model.llava.get_image_features(pixel_values=images).pooler_output)
    for image, whole, alone in zip(model.encode(images, splits, execution), tokens, stock, strict=True):
        sees_all = alone or model.options.split == "order_only"
        assert torch.allclose(image.bg, whole[image.bg_index], atol=1e-5) == sees_all
        assert torch.allclose(image.obj, whole[image.obj_index], atol=1e-5) == sees_all
        assert image.stock_order == alone


@pytest.mark.parametrize("layer", [-1, -2, -3, 2])
@torch.no_grad()
def test_feature_layer_is_read_from_the_config(layer) -> None:
    base = build_model().llava
    base.config.vision_feature_layer = layer
    model = BgObjLlava(base, tiny_tokenizer(), ModelOptions(split="order_only"))
    images = random_images(model, 1)
    expected = base.model.vision_tower(images, output_hidden_states=True).hidden_states[layer][:, 1:]
    assert torch.equal(model._vision.encode_whole(images), expected)


# -- isolation ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_background_tokens_never_move_with_the_objects(model, execution) -> None:
    images = random_images(model, 2)
    for seed in range(20):
        splits = random_split(model, 2, seed)
        changed = paint_objects(model, images, splits, seed)
        before, after = (encode_bg(model, each, splits, execution) for each in (images, changed))
        assert torch.equal(before, after)
        assert not torch.equal(*(encode_obj(model, each, splits, execution) for each in (images, changed)))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_object_tokens_never_move_with_the_background(model, execution) -> None:
    images = random_images(model, 2)
    for seed in range(5):
        splits = random_split(model, 2, seed)
        changed = paint_objects(model, images, SplitBatch.of(~splits.objects), seed)
        assert torch.equal(*(encode_obj(model, each, splits, execution) for each in (images, changed)))


def test_whole_image_encoding_does_move_with_the_objects() -> None:
    model = build_model(split="order_only")
    images, splits = random_images(model, 1), random_split(model, 1)
    changed = paint_objects(model, images, splits)
    before, after = (encode_bg(model, each, splits, "gather") for each in (images, changed))
    assert relative_error(after, before) > 0.05


@pytest.mark.parametrize("cls", ["per_group", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_and_gather_agree(cls, dtype) -> None:
    model = build_model(cls=cls, llava={"dtype": dtype, "side_px": 112})
    images, splits = random_images(model, 3), random_split(model, 3)
    limit = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for read in (encode_bg, encode_obj):
        gathered, masked = (read(model, images, splits, execution).float() for execution in ("gather", "mask"))
        assert gathered.isfinite().all()
        assert relative_error(masked, gathered) <= limit


def test_cls_row_takes_part_only_if_asked_for() -> None:
    with_cls, without = build_model(), build_model(cls="none")
    images, splits = random_images(with_cls, 1), random_split(with_cls, 1)
    for execution in EXECUTIONS:
        tokens = [encode_bg(model, images, splits, execution) for model in (with_cls, without)]
        assert relative_error(*tokens) > 1e-3


# -- gather ---------------------------------------------------------------------------------------------------------------


def test_padded_gather_equals_one_image_at_a_time(model) -> None:
    images, splits = random_images(model, 3), make_split(model, [1], list(range(9)), [2, 3, 4])
    for read in (encode_bg, encode_obj):
        single = torch.cat(
            [read(model, images[[i]], SplitBatch.of(splits.objects[[i]]), "gather") for i in range(3)]
        )
        assert relative_error(read(model, images, splits, "gather"), single) <= 1e-5


def test_without_the_key_mask_padding_would_show(model, monkeypatch) -> None:
    images, splits = random_images(model, 2), make_split(model, [1], list(range(15)))
    expected = encode_obj(model, images, splits, "gather")
    monkeypatch.setattr(encode, "mask_padding", lambda lengths, device: None)
    assert relative_error(encode_obj(model, images, splits, "gather"), expected) > 0.1


def test_group_alone_equals_its_tokens_in_the_whole(model) -> None:
    model = build_model(projector="separate")
    torch.nn.init.normal_(model.projector_obj.linear_2.weight, std=0.1)
    images, splits = random_images(model, 1), random_split(model, 1)
    with torch.no_grad():
        image = model.encode(images, splits, "gather")[0]
        for group in ("bg", "obj"):
            index = getattr(image, f"{group}_index")
            assert torch.equal(model.encode_group(images, index, group), getattr(image, group))
        assert not torch.equal(model.encode_group(images, image.bg_index, "obj"), image.bg)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("cls", ["per_group", "none"])
def test_empty_groups_have_no_rows(execution, cls) -> None:
    model = build_model(cls=cls)
    images, splits = random_images(model, 3), make_split(model, [], list(range(16)), [3])
    with torch.no_grad():
        encoded = model.encode(images, splits, execution)
    assert [tuple(image.bg.shape) for image in encoded] == [(16, 96), (0, 96), (15, 96)]
    assert [tuple(image.obj.shape) for image in encoded] == [(0, 96), (16, 96), (1, 96)]
    assert all(torch.cat([image.bg, image.obj]).isfinite().all() for image in encoded)


def test_ring_patches_are_encoded_in_both_groups(model) -> None:
    images, splits = random_images(model, 1), make_split(model, [5, 6])
    ringed = SplitBatch.of(splits.objects, ring=F.one_hot(torch.tensor([4]), 16).bool())
    assert torch.equal(*(encode_bg(model, images, each, "gather") for each in (splits, ringed)))
    with torch.no_grad():
        image = model.encode(images, ringed, "gather")[0]
        expected = model.encode_group(images, torch.tensor([4, 5, 6]), "obj")
    assert image.obj_index.tolist() == [4, 5, 6] and torch.equal(image.obj, expected)
    with pytest.raises(ValueError, match="OVERLAP_RING"):
        model.encode(images, ringed, "mask")


def test_execution_follows_the_mode(monkeypatch) -> None:
    model, called = build_model(), []
    for name in ("encode_groups", "encode_parts"):
        method = getattr(model._vision, name)
        monkeypatch.setattr(model._vision, name, lambda *a, name=name, method=method: called.append(name) or method(*a))
    images, splits = random_images(model, 1), random_split(model, 1)
    model.train().encode(images, splits)
    assert called == ["encode_groups"]
    model.eval().encode(images, splits)
    assert called == ["encode_groups", "encode_parts", "encode_parts"]


# -- what is refused, and the tower's state -------------------------------------------------------------------------------


def test_masks_of_a_wrong_shape_are_refused(model) -> None:
    images = random_images(model, 2)
    with pytest.raises(ValueError, match=r"\(2, 9\); expected \(2, 16\)"):
        model.encode(images, SplitBatch.of(torch.zeros(2, 9, dtype=torch.bool)))
    with pytest.raises(ValueError, match="expected \\(B, P\\)"):
        SplitBatch.of(torch.zeros(2, 16, dtype=torch.bool), ring=torch.zeros(1, 16, dtype=torch.bool))
    objects = torch.ones(1, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="background"):
        SplitBatch.of(objects, ring=objects)


def test_vision_tower_stays_frozen_and_in_evaluation_mode() -> None:
    model = build_model().train()
    tower = model.llava.model.vision_tower
    assert model.llava.model.language_model.training and not any(module.training for module in tower.modules())
    model.llava.model.multi_modal_projector.requires_grad_(True)
    tower.requires_grad_(True)
    encoded = model.encode(random_images(model, 2), random_split(model, 2))
    sum(image.bg.sum() + image.obj.sum() for image in encoded).backward()
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert all(parameter.grad is not None for parameter in model.llava.model.multi_modal_projector.parameters())


def test_tensors_on_another_device_are_named() -> None:
    model = build_model()
    norm = model.llava.model.language_model.layers[1].input_layernorm
    norm.weight = torch.nn.Parameter(norm.weight.to("meta"), requires_grad=False)
    with pytest.raises(ValueError, match=r"llava\.model\.language_model\.layers\.1\.input_layernorm\.weight on meta") as caught:
        model.encode(random_images(model, 1), random_split(model, 1))
    assert "layers.0" not in str(caught.value)
    model = build_model()
    with pytest.raises(ValueError, match="images on meta"):
        model.encode(random_images(model, 1).to("meta"), random_split(model, 1))


def test_devices_are_checked_once_and_again_after_a_move() -> None:
    model = build_model()
    images, splits = random_images(model, 1), random_split(model, 1)
    assert not model._devices_checked
    model.encode(images, splits)
    assert model._devices_checked
    assert not model.to("cpu")._devices_checked


def test_shapes_of_the_7b_model(seven_b) -> None:
    model = BgObjLlava(seven_b, tiny_tokenizer(), ModelOptions(split="order_only"))
    images = torch.empty(16, 3, 336, 336, device="meta")
    splits = random_split(model, 16)
    encoded = model.encode(images, splits)
    assert torch.stack([torch.cat([image.bg, image.obj]) for image in encoded]).shape == (16, 576, 4096)
    model = BgObjLlava(seven_b, tiny_tokenizer(), ModelOptions())
    image = model.encode(images[:1], make_split(model, list(range(115))), "gather")[0]
    assert image.bg.shape == (461, 4096) and image.obj.shape == (115, 4096)
    assert image.bg.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer is .*expected one number"),
        ({"vision_feature_layer": -9}, "the tower has 4 blocks"),
        ({"vision_feature_select_strategy": "full"}, "expected 'default'"),
    ],
)
def test_llavas_that_cannot_be_driven_are_refused(change, words) -> None:
    base = build_model().llava
    for name, value in change.items():
        setattr(base.config, name, value)
    with pytest.raises(ValueError, match=words):
        BgObjLlava(base, tiny_tokenizer())


def test_side_must_be_a_multiple_of_the_patch() -> None:
    base = build_model().llava
    base.config.vision_config.image_size = 60
    with pytest.raises(ValueError, match="multiple of the patch side, 14 px"):
        BgObjLlava(base, tiny_tokenizer())


def test_7b_config_is_a_llava(seven_b) -> None:
    assert isinstance(seven_b, LlavaForConditionalGeneration)
    assert seven_b.config.image_token_id == 32000 and seven_b.get_input_embeddings().num_embeddings == 32064

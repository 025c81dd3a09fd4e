"""Tower adapters against the towers' own image encoders."""

import copy
from typing import Callable

import open_clip
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from clip_ext.towers import HFClipTower, build_tower
from clip_ext.vision import ExtendedVisionTransformer

HF_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}


def hf_model(kind: str = "vision", attention: str = "sdpa") -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="comes with the extra `vlm`")
    config = transformers.CLIPVisionConfig(**HF_SIZES)
    config._attn_implementation = attention
    if kind == "vision":
        return transformers.CLIPVisionModel(config).eval()
    if kind == "projected":
        return transformers.CLIPVisionModelWithProjection(config).eval()
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=HF_SIZES, text_config=text, projection_dim=24)).eval()


def encode_own(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The tower's own image encoder."""
    if isinstance(model, open_clip.CLIP):
        return model.encode_image(images)
    if type(model).__name__ == "CLIPModel":
        output = model.get_image_features(pixel_values=images)
        return output if torch.is_tensor(output) else output.pooler_output
    output = model(pixel_values=images)
    return output.image_embeds if type(model).__name__ == "CLIPVisionModelWithProjection" else output.pooler_output


@pytest.fixture(scope="module", params=["open_clip", "open_clip 128", "vision", "vision eager", "projected", "full"])
def built_model(request: pytest.FixtureRequest, make_clip: Callable) -> nn.Module:
    if request.param == "open_clip":
        return make_clip(depth=6).model
    if request.param == "open_clip 128":
        return make_clip(width=128, depth=2, embed_dim=40, patch_size=4).model
    kind, _, attention = request.param.partition(" ")
    return hf_model(kind, attention or "sdpa")


@pytest.fixture
def model(built_model: nn.Module) -> nn.Module:
    """A copy, because tests add hooks and change the dtype."""
    return copy.deepcopy(built_model)


@pytest.fixture
def vision(model: nn.Module) -> ExtendedVisionTransformer:
    return ExtendedVisionTransformer(build_tower(model.visual if isinstance(model, open_clip.CLIP) else model))


@pytest.mark.parametrize(
    "options",
    [
        lambda n, length: {},
        lambda n, length: {"checkpoint": True},
        lambda n, length: {"attn_mask": torch.ones(length, length, dtype=torch.bool)},
        lambda n, length: {"attn_mask": torch.zeros(n, length, length)},
        lambda n, length: {"keep": {1: torch.arange(length)}},
        lambda n, length: {"keep": {2: torch.arange(length).expand(n, -1)}},
        lambda n, length: {"groups": torch.zeros(n, length - 1, dtype=torch.int64)},
        lambda n, length: {"cls_only_last": True},
    ],
    ids=["plain", "checkpoint", "bool mask", "mask", "full subset", "full subset later", "one group", "cls only"],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_driver_equals_the_towers_own_encoder(model, vision, images, options, grad) -> None:
    with torch.set_grad_enabled(grad):
        output = vision(images, **options(len(images), 1 + vision.tower.info.n_patches))
        assert_close(output.features, encode_own(model, images), atol=1e-5, rtol=0)


def test_tower_info_is_read_from_the_model(make_clip) -> None:
    info = build_tower(make_clip(width=48, depth=6, embed_dim=20).model.visual).info
    assert (info.depth, info.width, info.heads, info.embed_dim) == (6, 48, 3, 20)
    assert (info.patch_size, info.grid, info.n_patches, info.image_size_px) == (8, 4, 16, 32)
    info = build_tower(hf_model("projected")).info
    assert (info.depth, info.width, info.heads, info.embed_dim) == (6, 32, 2, 24)
    assert (info.patch_size, info.grid, info.n_patches, info.image_size_px) == (8, 4, 16, 32)
    assert build_tower(hf_model("vision")).info.embed_dim == 32


def test_tower_holds_the_models_own_modules(model, vision) -> None:
    visual = model.visual if isinstance(model, open_clip.CLIP) else model
    own_modules, own_parameters = set(visual.modules()), set(map(id, model.parameters()))
    assert all(block in own_modules for block in vision.tower.blocks)
    assert {id(parameter) for parameter in vision.parameters()} <= own_parameters


def test_tower_norms_are_all_layer_norms_by_reference(model, vision) -> None:
    tower = vision.tower
    norms = tower.norms()
    expected = ["ln_pre"]
    for number in range(1, tower.info.depth + 1):
        expected += [f"blocks.{number}.ln_1", f"blocks.{number}.ln_2"]
    assert list(norms) == [*expected, "ln_post"]
    vision_norms = [module for module in tower.visual.modules() if isinstance(module, nn.LayerNorm)]
    assert all(any(norm is own for own in vision_norms) for norm in norms.values())
    assert len({id(norm) for norm in norms.values()}) == 2 * tower.info.depth + 2


def test_hf_tower_accepts_blocks_that_return_tuples(images) -> None:
    model = hf_model("vision")
    expected = model(pixel_values=images).pooler_output
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda module, arguments, output: (output,))
    assert_close(ExtendedVisionTransformer(build_tower(model))(images).features, expected, atol=1e-5, rtol=0)


def test_hf_tower_accepts_a_vision_model_one_level_deeper(images) -> None:
    model = hf_model("vision")
    wrapped = nn.Module()
    wrapped.vision_model = model
    tower = build_tower(wrapped)
    assert isinstance(tower, HFClipTower)
    features = ExtendedVisionTransformer(tower)(images).features
    assert_close(features, model(pixel_values=images).pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
@pytest.mark.parametrize("mask", [None, "pairs", "images"])
def test_open_clip_block_run_in_parts_equals_the_called_block(make_clip, images, mask, autocast) -> None:
    tower = build_tower(copy.deepcopy(make_clip(depth=6).model.visual))
    x = tower.embed(images).detach()
    length = x.shape[1]
    shapes = {"pairs": (length, length), "images": (len(x), length, length)}
    attn_mask = None if mask is None else tower.native_mask(torch.rand(shapes[mask]) < 0.8, x.dtype)
    outputs, gradients, calls = [], [], []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(2):
            start = x.clone().requires_grad_()
            outputs.append(tower.run_block(2, start, attn_mask))
            gradients += torch.autograd.grad(outputs[-1].square().sum(), start)
            tower.blocks[1].register_forward_hook(lambda *arguments: calls.append(1))  # hooks are never passed by
    assert calls == [1]
    assert outputs[0].dtype == outputs[1].dtype == x.dtype
    tolerance = 2e-2 if autocast else 1e-5
    assert_close(*outputs, atol=tolerance, rtol=tolerance)
    assert_close(*gradients, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_outputs_keep_their_input_dtype(model, vision, images, dtype) -> None:
    model.to(dtype)
    seen = []
    for block in vision.tower.blocks:
        block.register_forward_hook(lambda module, arguments, output: seen.append((arguments[0].dtype, output.dtype)))
    prompts = {1: torch.randn(2, vision.tower.info.width)}
    output = vision(images, prompts=prompts)
    assert seen == [(dtype, dtype)] * vision.tower.info.depth
    assert output.features.dtype == dtype and output.features.isfinite().all()
    assert prompts[1].dtype == torch.float32


def test_block_outputs_keep_their_input_dtype_under_autocast(vision, images) -> None:
    seen = []
    for block in vision.tower.blocks:
        block.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].dtype == output.dtype))
    prompt = nn.Parameter(torch.randn(2, vision.tower.info.width))
    with torch.autocast("cpu", torch.bfloat16):
        vision(images, prompts={1: prompt}).features.float().square().sum().backward()
    assert seen == [True] * vision.tower.info.depth
    assert prompt.grad.dtype == torch.float32 and prompt.grad.abs().sum() > 0
    assert all(parameter.dtype == torch.float32 for parameter in vision.parameters())


@pytest.mark.parametrize(
    "overrides",
    [{"attentional_pool": True}, {"pool_type": "avg"}, {"patch_dropout": 0.5}, {"image_size": (32, 16)}],
    ids=lambda overrides: next(iter(overrides)),
)
def test_build_tower_refuses_towers_without_cls_readout(make_config, overrides) -> None:
    config = make_config(depth=1)
    visual = open_clip.CLIP(
        config["embed_dim"], config["vision_cfg"] | overrides, config["text_cfg"]
    ).visual
    with pytest.raises(ValueError, match="CLS token|patch_dropout|square images"):
        build_tower(visual)


def test_build_tower_refuses_other_modules() -> None:
    with pytest.raises(ValueError, match="Linear cannot be driven.*needs a CLIP ViT with a CLS token"):
        build_tower(nn.Linear(2, 2))

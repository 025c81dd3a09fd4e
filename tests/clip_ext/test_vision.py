"""The vision driver: prompts, taps, masks, token subsets, early stop, checkpointing."""

import copy
from typing import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clip_ext.stages import resolve_stages
from clip_ext.towers import build_tower
from clip_ext.vision import ExtendedVisionTransformer, TokenLayout

N = 16  # patches of the tiny towers
D = 32


@pytest.fixture(scope="module")
def model(make_clip: Callable) -> nn.Module:
    return make_clip(depth=6).model


@pytest.fixture
def vision(model: nn.Module) -> ExtendedVisionTransformer:
    """On a copy of the tower, because tests add hooks and freeze parameters."""
    return ExtendedVisionTransformer(build_tower(copy.deepcopy(model.visual)))


def make_prompts(*blocks: int, n: int = 4) -> dict[int, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {block: nn.Parameter(torch.randn(n, D, generator=generator) * 0.1) for block in blocks}


def encode_by_hand(vision: ExtendedVisionTransformer, images: Tensor, prompts: dict, mode: str) -> list[Tensor]:
    """Outputs of all blocks, by the rules as written: [CLS; prompt; ...], block after block."""
    x, outputs, n_old = vision.tower.embed(images), [], 0
    for number, block in enumerate(vision.tower.blocks, start=1):
        if number in prompts:
            cls, rest = x[:, :1], x[:, 1:] if mode == "accumulate" else x[:, 1 + n_old :]
            rows = torch.stack([prompts[number]] * len(images))
            x, n_old = torch.cat([cls, rows, rest], dim=1), len(prompts[number])
        x = block(x)
        outputs.append(x)
    return outputs


def test_taps_give_the_hybrids_feature_shapes(make_clip) -> None:
    clip = make_clip(embed_dim=512, patch_size=32, image_size=224)
    tower = build_tower(clip.model.visual)
    stages = resolve_stages("hybrid", tower.info.depth)
    blocks = [block for stage in stages for block in stage]
    pictures = torch.randn(2, 3, 224, 224)
    output = ExtendedVisionTransformer(tower)(pictures, taps=blocks)
    features = [tower.project(tower.post(output.taps[block])) for block in blocks]
    assert output.features.shape == (2, 512)
    assert len(features) == 8 and all(feature.shape == (2, 512) for feature in features)
    assert_close(features[-1], clip.model.encode_image(pictures), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mode", "blocks", "lengths"),
    [
        ("replace", (1,), [21] * 6),
        ("replace", (1, 3, 5), [21] * 6),
        ("replace", (4,), [17] * 3 + [21] * 3),
        ("accumulate", (1, 3, 5), [21, 21, 25, 25, 29, 29]),
        ("deep", (1, 2, 3, 4, 5, 6), [21] * 6),
    ],
)
def test_prompts_equal_the_rules_by_hand(vision, images, mode, blocks, lengths) -> None:
    prompts = make_prompts(*blocks)
    expected = encode_by_hand(vision, images, prompts, "accumulate" if mode == "accumulate" else "replace")
    assert [output.shape[1] for output in expected] == lengths
    output = vision(images, prompts=prompts, prompt_mode=mode, taps=range(1, 7))
    assert_close(output.tokens, expected[-1], atol=1e-6, rtol=0)
    for number, tokens in enumerate(expected, start=1):
        assert_close(output.taps[number], tokens[:, 0], atol=1e-6, rtol=0)
    assert output.layout == TokenLayout(n_cls=1, n_prompts=lengths[-1] - 1 - N, n_patches=N)


def test_prompts_of_different_length_replace_each_other(vision, images) -> None:
    prompts = make_prompts(1, n=5) | make_prompts(4, n=2)
    output = vision(images, prompts=prompts)
    assert_close(output.tokens, encode_by_hand(vision, images, prompts, "replace")[-1], atol=1e-6, rtol=0)
    assert output.layout.prompts == slice(1, 3) and output.layout.patches == slice(3, 3 + N)


def test_prompts_at_the_end_of_the_sequence_make_no_difference(vision, images) -> None:
    prompt = make_prompts(1)[1]
    x = torch.cat([vision.tower.embed(images), prompt.expand(len(images), -1, -1)], dim=1)
    for number in range(1, 7):
        x = vision.tower.run_block(number, x)
    at_the_end = vision.tower.project(vision.tower.post(x[:, 0]))
    assert_close(vision(images, prompts={1: prompt}).features, at_the_end, atol=2e-6, rtol=0)


def test_prompts_change_the_features_and_get_gradients(vision, images) -> None:
    prompts = make_prompts(1, 3, 5)
    output = vision(images, prompts=prompts, prompt_mode="accumulate")
    output.features.square().sum().backward()
    assert (output.features - vision(images).features).abs().max() > 1e-3
    assert all(prompt.grad.abs().sum() > 0 for prompt in prompts.values())


def test_prompt_mapping_of_the_caller_is_not_modified(vision, images) -> None:
    prompts = make_prompts(1, 3)
    before = {block: (prompt, prompt.detach().clone()) for block, prompt in prompts.items()}
    vision(images, prompts=prompts, prompt_mode="accumulate")
    assert list(prompts) == list(before)
    assert all(prompts[block] is prompt and torch.equal(prompt, copy) for block, (prompt, copy) in before.items())


@pytest.mark.parametrize(("depth", "width", "embed_dim"), [(6, 32, 24), (12, 128, 40), (24, 32, 48)])
@pytest.mark.parametrize(("family", "mode"), [("hybrid", "replace"), ("multilayer", "accumulate")])
def test_stage_prompts_and_taps_on_any_tower(make_clip, images, depth, width, embed_dim, family, mode) -> None:
    tower = build_tower(make_clip(depth=depth, width=width, embed_dim=embed_dim).model.visual)
    stages = resolve_stages(family, depth, scheme="even" if family == "multilayer" else "auto")
    prompts = {stage[0]: torch.zeros(2, width) for stage in stages}
    blocks = [block for stage in stages for block in stage]
    output = ExtendedVisionTransformer(tower)(images, prompts=prompts, prompt_mode=mode, taps=blocks)
    assert output.features.shape == (3, embed_dim)
    assert list(output.taps) == blocks and all(tap.shape == (3, width) for tap in output.taps.values())
    n_prompts = 2 if mode == "replace" else 2 * len(stages)
    assert output.layout == TokenLayout(1, n_prompts, N) and output.tokens.shape == (3, 1 + n_prompts + N, width)


def test_taps_hold_only_what_was_asked_for_and_own_their_memory(vision, images) -> None:
    with torch.no_grad():
        taps = vision(images, taps=(2, 5)).taps
    assert list(taps) == [2, 5]
    assert all(tap.untyped_storage().nbytes() == tap.numel() * tap.element_size() for tap in taps.values())


def test_taps_of_patches_are_their_mean(vision, images) -> None:
    output = vision(images, prompts=make_prompts(1), taps=(6,), token="patch")
    assert_close(output.taps[6], output.tokens[:, output.layout.patches].mean(dim=1))
    assert_close(output.taps[6], output.tokens[:, -N:].mean(dim=1))


def test_stop_after_runs_no_later_block(vision, images) -> None:
    ran = []
    for number, block in enumerate(vision.tower.blocks, start=1):
        block.register_forward_hook(lambda module, arguments, output, number=number: ran.append(number))
    output = vision(images, stop_after=4, taps=(4,))
    assert ran == [1, 2, 3, 4] and output.features is None
    assert_close(output.tokens, encode_by_hand(vision, images, {}, "replace")[3], atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"cls_only_last": True}], ids=["all rows", "cls only last"])
def test_checkpoint_gives_the_same_gradients_without_a_grad_input(vision, images, options) -> None:
    prompt = make_prompts(1)[1]
    trained = [prompt, *(parameter for norm in vision.tower.norms().values() for parameter in norm.parameters())]
    for parameter in vision.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    gradients = []
    for checkpoint in (False, True):
        output = vision(images, prompts={1: prompt}, taps=(2, 6), checkpoint=checkpoint, **options)
        loss = output.features.square().sum() + output.taps[2].square().sum() + output.taps[6].square().sum()
        gradients.append(torch.autograd.grad(loss, trained))
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().sum() > 0
        assert_close(recomputed, plain, rtol=1e-5, atol=1e-8)


def test_checkpoint_gives_gradients_to_norms_behind_a_frozen_input(vision, images) -> None:
    for parameter in vision.parameters():
        parameter.requires_grad_(False)
    trained = [parameter for block in vision.tower.blocks for parameter in block.ln_1.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    vision(images, checkpoint=True).features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)


def test_checkpoint_stores_fewer_activations(vision, images) -> None:
    def count_saved(checkpoint: bool) -> int:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            vision(images, prompts=make_prompts(1), checkpoint=checkpoint)
        return sum(saved)

    assert count_saved(True) < 0.3 * count_saved(False)


def test_cls_only_last_equals_the_full_block(vision, images) -> None:
    prompts = make_prompts(1, 6)
    full, short = (vision(images, prompts=prompts, taps=(6,), cls_only_last=only) for only in (False, True))
    assert_close(short.features, full.features, atol=1e-6, rtol=0)
    assert_close(short.taps[6], full.taps[6], atol=1e-6, rtol=0)
    assert short.tokens.shape == (len(images), 1, D) and short.layout == TokenLayout(1, 0, 0)


def test_bool_mask_true_means_may_attend(vision, images) -> None:
    only_self = torch.eye(1 + N, dtype=torch.bool)
    alone = vision(images, attn_mask=only_self).tokens
    changed = images.clone()
    changed[:, :, -8:, -8:] += 1.0
    after = vision(changed, attn_mask=only_self).tokens
    assert torch.equal(alone[:, :-1], after[:, :-1])
    assert (alone[:, -1] - after[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_mask_per_image_equals_one_image_at_a_time(vision, images, grad) -> None:
    masks = torch.rand(3, 1 + N, 1 + N, generator=torch.Generator().manual_seed(2)) > 0.5
    masks |= torch.eye(1 + N, dtype=torch.bool)
    additive = torch.zeros(masks.shape).masked_fill(~masks, float("-inf"))
    with torch.set_grad_enabled(grad):
        together = vision(images, attn_mask=masks).features
        assert_close(vision(images, attn_mask=additive).features, together, atol=1e-6, rtol=0)
        for row in range(3):
            alone = vision(images[row : row + 1], attn_mask=masks[row]).features
            assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_groups_equal_separate_passes_over_their_tokens(vision, images) -> None:
    groups = torch.randint(0, 2, (3, N), generator=torch.Generator().manual_seed(3))
    output = vision(images, groups=groups, cls_copies=2)
    assert output.features is None and output.layout == TokenLayout(2, 0, N)
    for row in range(3):
        for group in (0, 1):
            rows = torch.cat([torch.zeros(1, dtype=torch.int64), (groups[row] == group).nonzero()[:, 0] + 1])
            alone = vision(images[row : row + 1], keep={1: rows}).tokens[0]
            assert_close(output.tokens[row, group], alone[0], atol=1e-5, rtol=0)
            assert_close(output.tokens[row, 1 + rows[1:]], alone[1:], atol=1e-5, rtol=0)


def test_groups_without_cls(vision, images) -> None:
    groups = torch.arange(N).expand(3, -1) % 3
    output = vision(images, groups=groups, cls_copies=0, taps=(6,), token="patch")
    assert output.layout == TokenLayout(0, 0, N) and output.features is None
    rows = torch.arange(1, 1 + N)[groups[0] == 1]
    alone = vision(images, keep={1: rows}).tokens
    assert_close(output.tokens[:, rows - 1], alone, atol=1e-5, rtol=0)


def test_keep_may_repeat_cls_and_take_a_mask(vision, images) -> None:
    groups = torch.randint(0, 2, (3, N), generator=torch.Generator().manual_seed(3))
    of_rows = torch.cat([torch.tensor([[0, 1]]).expand(3, -1), groups], dim=1)
    rows = torch.cat([torch.zeros(2, dtype=torch.int64), torch.arange(1, 1 + N)])
    masked = vision(images, keep={1: rows}, attn_mask=of_rows[:, :, None] == of_rows[:, None, :])
    assert_close(masked.tokens, vision(images, groups=groups, cls_copies=2).tokens, atol=1e-6, rtol=0)


def test_keep_at_a_later_block_drops_rows_from_tokens_and_mask(vision, images) -> None:
    mask = torch.ones(1 + N, 1 + N, dtype=torch.bool).tril()
    keep = torch.stack([torch.tensor([0, 3, 5, 7 + shift]) for shift in range(3)])
    output = vision(images, keep={4: keep}, attn_mask=mask)
    x = vision.tower.embed(images)
    for number in range(1, 7):
        own_mask = mask
        if number >= 4:
            own_mask = mask[keep[:, :, None], keep[:, None, :]]
        if number == 4:
            x = torch.stack([row[index] for row, index in zip(x, keep, strict=True)])
        x = vision.tower.run_block(number, x, vision.tower.native_mask(own_mask, x.dtype))
    assert_close(output.tokens, x, atol=1e-6, rtol=0)
    assert output.layout == TokenLayout(1, 0, 3) and output.features is not None


def test_batch_of_one_keeps_its_dimension(vision, images) -> None:
    output = vision(images[:1], prompts=make_prompts(1), taps=(6,))
    assert output.features.shape == (1, 24) and output.taps[6].shape == (1, D)


def test_driver_never_changes_weights_or_draws_random_numbers(vision, images) -> None:
    before, state = copy.deepcopy(vision.state_dict()), torch.get_rng_state()
    vision(images, prompts=make_prompts(1), taps=(3,), checkpoint=True).features.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vision.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)

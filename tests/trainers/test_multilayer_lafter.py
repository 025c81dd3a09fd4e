"""MultiLayerLaFTer: prompts per stage, counts, reductions to LaFTer and to CLIP, and what trains in which epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from open_clip.transformer import VisionTransformer
from tiny_world import clip_config
from torch import Tensor
from torch.testing import assert_close

from clip_ext.loader import build_clip
from clip_ext.stages import resolve_stages
from trainers.multilayer_lafter import MultiLayerStudent, first_open_stage
from trainers.lafter_parts.students import LaFTerStudent

STAGES = resolve_stages("multilayer", 12)
MODES = ("replace", "accumulate", "deep")


def tower_of(patch: int, width: int, depth: int, embed_dim: int) -> VisionTransformer:
    """A vision tower without memory behind its weights."""
    with torch.device("meta"):
        return VisionTransformer(224, patch, width, depth, width // 64, 4.0, output_dim=embed_dim)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_student(
    *, depth: int = 12, width: int = 32, embed_dim: int = 24, classes: int = 5, stages: tuple = STAGES, **options
) -> MultiLayerStudent:
    """A student on a random tower of its own, with a classifier that is not zero, ready to train."""
    torch.manual_seed(0)
    visual = build_clip(clip_config(width=width, depth=depth, embed_dim=embed_dim), name="tiny").model.visual
    options = {"prompt_tokens": 3, "scale_init": 10.0} | options
    student = MultiLayerStudent(visual.requires_grad_(False), classes, stages=stages, **options)
    student.set_classifier(torch.randn(classes, embed_dim))
    student.adapt.requires_grad_(True)
    return student


def images_of(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# Counts


def test_b32_with_six_classes_trains_1669640() -> None:
    assert count(MultiLayerStudent(tower_of(32, 768, 12, 512), 6, stages=STAGES, scale_init=10.0).adapt) == 1_669_640


@pytest.mark.parametrize(
    ("patch", "width", "depth", "embed_dim", "per_stage"), [(16, 768, 12, 512, 394_752), (14, 1024, 24, 768, 788_480)]
)
def test_a_stage_brings_its_readout_and_its_prompts(patch: int, width: int, depth: int, embed_dim: int, per_stage: int) -> None:
    tower, stages = tower_of(patch, width, depth, embed_dim), resolve_stages("multilayer", depth)
    variants = {"default": {}, "shared": {"readout": "shared"}, "deep": {"prompt_mode": "deep"}, "bare": {"prompt_tokens": 0}}
    numbers = {
        name: count(MultiLayerStudent(tower, 6, stages=stages, scale_init=10.0, **options).adapt)
        for name, options in variants.items()
    }
    assert numbers["default"] - numbers["shared"] == 4 * per_stage - 2 * width
    assert numbers["deep"] - numbers["default"] == (depth - 4) * 16 * width
    assert numbers["default"] - numbers["bare"] == 4 * 16 * width


# Prompts


@pytest.mark.parametrize(
    ("mode", "lengths"),
    [("replace", [20] * 12), ("accumulate", [20] * 4 + [23] * 4 + [26] * 3 + [29]), ("deep", [20] * 12)],
)
def test_sequence_length_of_every_block(mode: str, lengths: list[int]) -> None:
    student, found = make_student(prompt_mode=mode), []
    for block in student.driver.tower.blocks:
        block.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].shape[1]))
    student(images_of())
    assert found == lengths  # CLS + 3 prompts + 16 patches


@pytest.mark.parametrize("mode", MODES)
def test_prompts_enter_at_their_blocks_and_are_what_the_student_uses(mode: str) -> None:
    student = make_student(prompt_mode=mode)
    assert student.entries == (list(range(1, 13)) if mode == "deep" else [1, 5, 9, 12])
    own = list(student.adapt.stage_prompts.values())
    final, stages = student.forward_multi_stage_prompts(images_of(), own)
    assert final.shape == (2, 24) and [tuple(z.shape) for z in stages] == [(2, 24)] * 4
    prediction = student(images_of())
    assert_close(prediction.features, final)
    judged = student.scaled(student.adapt.classifier(student.normalised(torch.stack(stages))))
    assert_close(prediction.stage_logits, judged)
    for position in range(len(own)):  # every set matters, from its own stage on
        changed = [torch.randn_like(p) if place == position else p for place, p in enumerate(own)]
        found = student.forward_multi_stage_prompts(images_of(), changed)[1]
        moved = [not torch.equal(a, b) for a, b in zip(found, stages, strict=True)]
        first = [student.entries[position] in stage for stage in STAGES].index(True)
        assert moved == [number >= first for number in range(4)]


@pytest.mark.parametrize("mode", MODES)
def test_defect_27_prompts_that_are_handed_over_stay_as_they_are(mode: str) -> None:
    student = make_student(prompt_mode=mode)
    handed = [torch.randn(2, 32) for _ in student.entries]
    kept, values = list(handed), [prompt.clone() for prompt in handed]
    student.forward_multi_stage_prompts(images_of(), handed)
    assert len(handed) == len(kept) and all(a is b for a, b in zip(handed, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(handed, values, strict=True))


def test_wrong_number_of_prompt_sets_is_refused() -> None:
    student = make_student()
    with pytest.raises(ValueError, match=r"got 3 prompt sets; expected 4, for blocks \[1, 5, 9, 12\]"):
        student.forward_multi_stage_prompts(images_of(), [torch.zeros(2, 32)] * 3)


# Reductions


def lafter_twin(student: MultiLayerStudent, config: dict) -> LaFTerStudent:
    """A LaFTer student on another tower with the same weights."""
    visual = build_clip(config, name="tiny").model.visual
    visual.load_state_dict(student.driver.tower.visual.state_dict())
    twin = LaFTerStudent(visual.requires_grad_(False), 5, prompt_tokens=3)
    twin.adapt.requires_grad_(True)
    twin.adapt.prompts.data.copy_(student.adapt.stage_prompts["1"])
    twin.set_classifier(student.adapt.classifier.weight)
    return twin


@pytest.mark.parametrize("shape", [(32, 12, 24), (128, 6, 24), (32, 24, 32)], ids=str)
def test_one_stage_with_clips_readout_and_raw_features_is_lafter(shape: tuple[int, int, int]) -> None:
    width, depth, embed_dim = shape
    one_stage = (tuple(range(1, depth + 1)),)
    sizes = {"width": width, "depth": depth, "embed_dim": embed_dim}
    student = make_student(**sizes, stages=one_stage, readout="shared", scale_init=None, aggregation={"mode": "last"})
    lafter = lafter_twin(student, clip_config(**sizes))
    assert count(student.adapt) == count(lafter.adapt)
    expected, found = lafter(images_of(4)), student(images_of(4))
    assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    for prediction in (expected, found):
        torch.nn.functional.cross_entropy(prediction.logits, torch.tensor([0, 1, 2, 3])).backward()
    assert_close(student.adapt.stage_prompts["1"].grad, lafter.adapt.prompts.grad, atol=1e-5, rtol=0)
    assert_close(student.adapt.classifier.weight.grad, lafter.adapt.classifier.weight.grad, atol=1e-5, rtol=0)
    for name, norm in lafter.adapt.norms.named_parameters():
        assert_close(student.adapt.norms.get_parameter(name).grad, norm.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("readout", ["stage", "shared"])
def test_without_prompts_and_classifier_it_is_encode_image(readout: str) -> None:
    clip = build_clip(clip_config(), name="tiny")
    student = MultiLayerStudent(clip.model.visual, 5, stages=STAGES, prompt_tokens=0, readout=readout)
    expected = clip.model.encode_image(images_of())
    final, stages = student.forward_multi_stage_prompts(images_of(), [])
    assert_close(final, expected, atol=1e-5, rtol=0)
    assert_close(stages[-1], expected, atol=1e-5, rtol=0)  # the last stage is the last block
    assert_close(student(images_of()).features, expected, atol=1e-5, rtol=0)


# Shapes


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (3, 5)])
@pytest.mark.parametrize(
    "stages",
    [STAGES, resolve_stages("multilayer", 24), ((1, 2), (3,), (4, 5, 6)), ((1,), (2,), (3,)), ((1, 2, 3),)],
    ids=["12 blocks", "24 blocks", "own list", "one-block stages", "one stage"],
)
def test_defect_19_prediction_keeps_its_shape_at_batch_one_and_two_classes(batch: int, classes: int, stages: tuple) -> None:
    options = {"stage_classifier": "copy", "distribution_head": True}
    student = make_student(depth=stages[-1][-1], stages=stages, classes=classes, **options)
    prediction = student(images_of(batch))
    assert prediction.logits.shape == prediction.distribution_logits.shape == (batch, classes)
    assert prediction.stage_logits.shape == (len(stages), batch, classes)
    assert prediction.features.shape == (batch, 24)


@pytest.mark.parametrize("mode", MODES)
def test_defect_20_checkpointing_gives_the_same_gradients(mode: str) -> None:
    gradients = []
    for checkpoint in (False, True):
        student = make_student(prompt_mode=mode, checkpoint=checkpoint)
        student(images_of()).logits.logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in student.adapt.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().sum() > 0, name
        assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-6)


# Progressive unfreezing

EVERYTHING = None


@pytest.mark.parametrize(
    ("n_stages", "warmup", "gradual", "expected"),
    [
        (4, 2, 3, [3, 3, 2, 1, 0, EVERYTHING, EVERYTHING]),
        (4, 2, 1, [3, 3, 2, EVERYTHING]),
        (2, 1, 3, [1, 0, 0, 0, EVERYTHING]),
        (1, 2, 2, [0, 0, 0, 0, EVERYTHING]),
        (4, 0, 2, [2, 1, EVERYTHING]),
        (4, 0, 0, [EVERYTHING]),
    ],
)
def test_stages_open_from_the_deepest(n_stages: int, warmup: int, gradual: int, expected: list[int | None]) -> None:
    options = {"n_stages": n_stages, "warmup_epochs": warmup, "unfreeze_epochs": gradual}
    assert [first_open_stage(epoch, **options) for epoch in range(len(expected))] == expected


def names_of_stage(number: int) -> set[str]:
    """Names in `adapt` of a stage of the 12-block plan, from 0."""
    names = {f"stage_prompts.{STAGES[number][0]}"} | {f"readout.{part}.{number}" for part in ("scale", "shift", "weight")}
    return names | names_of_norms(STAGES[number])


def names_of_norms(blocks: tuple[int, ...]) -> set[str]:
    """Names in `adapt` of the LayerNorms of some blocks."""
    norms = [f"norms.blocks_{block}_{norm}" for block in blocks for norm in ("ln_1", "ln_2")]
    return {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}


ENDS = {"norms.ln_pre.weight", "norms.ln_pre.bias", "nga.rho", "fusion.beta", "logit_scale.log_scale"}
OPEN = [[3], [3], [3, 2], [3, 2, 1], [3, 2, 1, 0]]  # stages by epoch for W = 2, G = 3
PROGRESS = {".PROGRESSIVE": True, "OPTIM.MAX_EPOCH": 7, ".SCHEDULER": "constant", ".TEACHER": "self"}


def expected_names(epoch: int) -> set[str]:
    stages = OPEN[min(epoch, 4)]
    return {"classifier.weight"}.union(*(names_of_stage(s) for s in stages), ENDS if epoch > 4 else set())


def test_defect_28_progressive_run_moves_and_decays_exactly_the_open_parameters(make_trainer) -> None:
    trainer = make_trainer("MultiLayerLaFTer", PROGRESS)
    assert expected_names(5) == {name for name, _ in trainer.adapt.named_parameters()}
    in_optimizer = {id(p) for group in trainer.optim.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in trainer.adapt.parameters()}
    inner, moved = trainer.run_epoch, []

    def run_epoch() -> None:
        before = {name: p.detach().clone() for name, p in trainer.adapt.named_parameters()}
        inner()
        moved.append({name for name, p in trainer.adapt.named_parameters() if not torch.equal(p, before[name])})
        frozen = [p for p in trainer.adapt.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)

    trainer.run_epoch = run_epoch
    trainer.train()
    assert moved == [expected_names(epoch) for epoch in range(7)]


@pytest.mark.parametrize("options", [{".PROMPT_MODE": "deep", ".READOUT": "shared"}, {".STAGE_CLASSIFIER": "copy"}], ids=str)
def test_what_opens_first_holds_all_of_the_deepest_stage_and_the_heads(options: dict, make_trainer) -> None:
    trainer = make_trainer("MultiLayerLaFTer", PROGRESS | {".STAGES": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]} | options)
    trainer.student.open_from(2)
    opened = {name for name, p in trainer.adapt.named_parameters() if p.requires_grad}
    if ".READOUT" in options:
        own = {"stage_prompts.11", "stage_prompts.12", "norms.ln_post.weight", "norms.ln_post.bias"}
    else:
        own = {"stage_prompts.11", "readout.scale.2", "readout.shift.2", "readout.weight.2"}
    assert opened == {"classifier.weight"} | names_of_norms((11, 12)) | own


@contextmanager
def count_saved(student: MultiLayerStudent) -> Iterator[dict[int, int]]:
    """Count the tensors that autograd stores inside each block."""
    tower, saved = student.driver.tower, {}
    inner = {"run_block": tower.run_block, "run_block_cls": tower.run_block_cls}

    def counting(run):
        def block(number: int, *arguments: Tensor | None) -> Tensor:
            kept: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                output = run(number, *arguments)
            saved[number] = len(kept)
            return output

        return block

    for name, run in inner.items():
        setattr(tower, name, counting(run))
    yield saved
    for name in inner:
        delattr(tower, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_autograd_stores_nothing_below_the_first_open_stage(mode: str, first: int) -> None:
    student = make_student(prompt_mode=mode)
    student.open_from(first)
    with count_saved(student) as saved:
        student(images_of()).logits.sum().backward()
    assert [number for number in range(1, 13) if saved[number]] == list(range(STAGES[first][0], 13))


@pytest.mark.parametrize("progressive", [True, False])
def test_loss_is_checked_to_reach_what_opens_later(progressive: bool, make_trainer) -> None:
    trainer = make_trainer("MultiLayerLaFTer", PROGRESS | {".PROGRESSIVE": progressive})
    trainer.adapt.nga.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(RuntimeError, match="the loss does not reach: nga.stray"):
        trainer.train()
    assert trainer.epoch == (5 if progressive else 0)

"""HybridCascadeLaFTer: shapes, reductions to LaFTer, trainable counts, presets."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import VisionTransformer
from tiny_world import clip_config
from torch.testing import assert_close

from clip_ext.loader import build_clip
from clip_ext.stages import resolve_stages
from trainers.hybrid_cascade_lafter import HybridCascadeStudent
from trainers.lafter_parts.students import LaFTerStudent, prompt_bound

STAGES = ((5, 6, 7), (8, 9), (10, 11, 12))


def b32_tower() -> VisionTransformer:
    """ViT-B/32's vision tower without memory behind its weights."""
    with torch.device("meta"):
        return VisionTransformer(224, 32, 768, 12, 12, 4.0, output_dim=512)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("n_classes", [6, 47, 100])
def test_lafter_on_b32_trains_78336_plus_512_per_class(n_classes: int) -> None:
    assert count(LaFTerStudent(b32_tower(), n_classes).adapt) == 78_336 + 512 * n_classes


def test_hybrid_on_b32_with_six_classes_trains_81415() -> None:
    assert count(HybridCascadeStudent(b32_tower(), 6, stages=STAGES, scale_init=10.0).adapt) == 81_415


def test_stage_readout_replaces_the_final_norm_by_a_copy_per_stage() -> None:
    shared = count(HybridCascadeStudent(b32_tower(), 6, stages=STAGES, scale_init=10.0).adapt)
    staged = HybridCascadeStudent(b32_tower(), 6, stages=STAGES, scale_init=10.0, readout="stage").adapt
    assert count(staged) == shared - 2 * 768 + 3 * (768 * 512 + 2 * 768)
    assert not any("ln_post" in name for name, _ in staged.named_parameters())


@pytest.mark.parametrize(("patch", "width", "bound"), [(32, 768, 0.03953), (16, 768, 0.0625), (14, 1024, 0.06101)])
def test_prompt_bound_follows_the_real_patch_size(patch: int, width: int, bound: float) -> None:
    with torch.device("meta"):
        tower = VisionTransformer(224, patch, width, 1, 12 if width == 768 else 16, 4.0, output_dim=512)
    assert prompt_bound(LaFTerStudent(tower, 2).info) == pytest.approx(bound, abs=5e-6)


def make_pair(config: dict, *, prompt_tokens: int = 3, **hybrid) -> tuple[LaFTerStudent, HybridCascadeStudent, torch.Tensor]:
    """Return a LaFTer and a Hybrid student with equal weights on CLIPs of their own, and images."""
    torch.manual_seed(0)
    depth = config["vision_cfg"]["layers"]
    lafter = LaFTerStudent(build_clip(config, name="tiny").model.visual, 5, prompt_tokens=prompt_tokens)
    student = HybridCascadeStudent(
        build_clip(config, name="tiny").model.visual, 5, stages=((depth,),), prompt_tokens=prompt_tokens, **hybrid
    )
    for one in (lafter, student):
        one.requires_grad_(False).eval()
        one.adapt.requires_grad_(True)
    if prompt_tokens:
        student.adapt.prompts.data.copy_(lafter.adapt.prompts)
    student.set_classifier(lafter.adapt.classifier.weight)
    return lafter, student, torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("shape", [(32, 12, 24), (128, 6, 24), (32, 24, 32)], ids=str)
def test_one_last_stage_without_normalisation_is_lafter(shape: tuple[int, int, int]) -> None:
    width, depth, embed_dim = shape
    config = clip_config(width=width, depth=depth, embed_dim=embed_dim)
    lafter, hybrid, images = make_pair(config, aggregation={"mode": "last"})
    expected, found = lafter(images), hybrid(images)
    assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    for prediction in (expected, found):
        torch.nn.functional.cross_entropy(prediction.logits, torch.tensor([0, 1, 2, 3])).backward()
    assert_close(hybrid.adapt.prompts.grad, lafter.adapt.prompts.grad, atol=1e-5, rtol=0)
    assert_close(hybrid.adapt.classifier.weight.grad, lafter.adapt.classifier.weight.grad, atol=1e-5, rtol=0)


def test_without_prompts_the_student_reads_clips_own_features() -> None:
    clip = build_clip(clip_config(), name="tiny")
    student = LaFTerStudent(clip.model.visual, 5, prompt_tokens=0)
    images = torch.randn(2, 3, 32, 32)
    assert_close(student(images).features, clip.model.encode_image(images), atol=1e-5, rtol=0)
    assert_close(student.plain_features(images), clip.model.encode_image(images, normalize=True), atol=1e-5, rtol=0)


def test_feature_facts_of_a_twelve_block_tower() -> None:
    config = clip_config(embed_dim=512)
    config["vision_cfg"] |= {"image_size": 224, "patch_size": 32}
    student = HybridCascadeStudent(build_clip(config, name="tiny").model.visual, 5, stages=STAGES, scale_init=10.0)
    final, intermediates = student.forward_with_intermediates(torch.randn(2, 3, 224, 224))
    assert final.shape == (2, 512)
    assert [tuple(u.shape) for u in intermediates] == [(2, 512)] * 8
    assert_close(intermediates[-1], final, atol=1e-5, rtol=0)
    assert student.extraction_indices == [4, 5, 6, 7, 8, 9, 10, 11]
    assert student.stage_boundaries == [[0, 1, 2], [3, 4], [5, 6, 7]]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("options", [{}, {"readout": "stage", "stage_classifier": "copy", "fusion": {"mode": "sum"}}], ids=str)
def test_defect_19_prediction_keeps_its_shape_at_batch_one_and_two_classes(batch: int, n_classes: int, options: dict) -> None:
    visual = build_clip(clip_config(depth=6), name="tiny").model.visual
    student = HybridCascadeStudent(
        visual, n_classes, stages=((2, 3), (4,), (5, 6)), prompt_tokens=2, scale_init=10.0, **options
    )
    prediction = student(torch.randn(batch, 3, 32, 32))
    assert prediction.logits.shape == (batch, n_classes)
    assert prediction.stage_logits.shape == (3, batch, n_classes)
    assert prediction.features.shape == (batch, 24)


def test_stage_readout_starts_as_clips_own_readout() -> None:
    visual = build_clip(clip_config(), name="tiny").model.visual
    shared = HybridCascadeStudent(visual, 5, stages=((12,),), prompt_tokens=0)
    staged = HybridCascadeStudent(visual, 5, stages=((12,),), prompt_tokens=0, readout="stage", stage_classifier="copy")
    staged.set_classifier(shared.adapt.classifier.weight)
    images = torch.randn(2, 3, 32, 32)
    assert_close(staged(images).logits, shared(images).logits, atol=1e-5, rtol=0)


def test_defect_20_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        visual = build_clip(clip_config(), name="tiny").model.visual.requires_grad_(False)
        student = HybridCascadeStudent(visual, 5, stages=STAGES, prompt_tokens=2, scale_init=10.0, checkpoint=checkpoint)
        student.adapt.requires_grad_(True)
        student(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).logits.logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in student.adapt.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().sum() > 0 or name.endswith("rho"), name
        assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-6)


PRESETS = {
    "cascadeclip": {
        ".STAGE_SCHEME": "cascadeclip",
        ".NGA_MODE": "free",
        ".READOUT": "stage",
        ".STAGE_CLASSIFIER": "copy",
        ".FUSION": "sum",
    },
    "keep_last": {".STAGE_SCHEME": "keep_last"},
    "mean_uniform": {".NGA_MODE": "mean", ".FUSION_INIT": "uniform", ".CONS_PAIRS": "adjacent", ".CONS_DETACH": False},
    "last_of_last": {".NGA_MODE": "last", ".FUSION": "last", ".CONS_PAIRS": "to_last", ".NGA_OFFSET": 1},
    "one_stage": {".STAGES": [[11, 12]]},
    "one_block_stages": {".STAGES": [[4], [12]], ".GRAD_CKPT": True},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_every_declared_parameter(preset: str, make_trainer) -> None:
    trainer = make_trainer("HybridCascadeLaFTer", {"OPTIM.MAX_EPOCH": 1, ".WARMUP_EPOCHS": 0, **PRESETS[preset]})
    trainer.train()  # raises if a declared parameter gets no gradient
    schemes = {"cascadeclip": 3, "keep_last": 4, "mean_uniform": 3, "last_of_last": 3, "one_stage": 1, "one_block_stages": 2}
    assert len(trainer.student.stages) == schemes[preset]
    row = trainer.report.rows[-1]
    assert all(sum(weights) == pytest.approx(1.0) for weights in row["nga"])
    assert len(row["fusion"]) == schemes[preset]


def test_stages_of_a_deeper_tower_come_from_its_depth() -> None:
    visual = build_clip(clip_config(depth=24), name="tiny").model.visual
    student = HybridCascadeStudent(visual, 3, stages=resolve_stages("hybrid", 24), prompt_tokens=0)
    assert student.stages[-1][-1] == 24 and len(student.stages) == 3


@pytest.mark.parametrize("stages", [[[5, 6], [6, 7]], [[5], [13]], [[5, 6], [7]], [[0, 1], [12]]], ids=str)
def test_impossible_stages_are_refused(stages: list, make_trainer) -> None:
    with pytest.raises(ValueError, match="stages"):
        make_trainer("HybridCascadeLaFTer", {".STAGES": stages})

"""What the trainers with stages share: losses, presets, lists that do not fit, resumed and label-free runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import tiny_moods  # noqa: F401  (registers TinyMoods)
import torch
from dassl.utils import set_random_seed
from test_lafter_runs import assert_same, kill_in_epoch, rates, weights
from tiny_world import TinyColours, build, clip_config, make_cfg, test_logits, write_clip
from torch.nn.functional import cross_entropy

import trainers
from trainers.config_merge import read_yaml
from trainers.lafter import LaFTer
from trainers.lafter_parts.stage_training import StageTraining
from trainers.lafter_parts.targets import TrainingTarget

BOTH = ("HybridCascadeLaFTer", "MultiLayerLaFTer")
CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "trainers"
ONE_EPOCH = {"OPTIM.MAX_EPOCH": 1, ".WARMUP_EPOCHS": 0}


@pytest.mark.parametrize("name", BOTH)
def test_both_are_children_of_lafter_and_not_of_each_other(name: str) -> None:
    kind = getattr(trainers, name)
    assert kind.__bases__ == (StageTraining, LaFTer)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("weight", ["CONS_WEIGHT", "DEEP_SUPERVISION"])
def test_defect_13_a_loss_weight_changes_the_loss_and_the_gradient(weight: str, name: str, make_trainer) -> None:
    gradients = {}
    for value in (0.0, 0.1, 0.7):
        trainer = make_trainer(name, {f".{weight}": value}, run=f"run{value}")
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        trainer.student.set_classifier(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)))
        target = TrainingTarget(torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool), torch.ones(2))
        losses = trainer.student_losses(trainer.student(images), target)
        assert (("consistency" if weight == "CONS_WEIGHT" else "deep") in losses) == bool(value)
        sum(losses.values()).backward()
        gradients[value] = trainer.adapt.norms["blocks_1_ln_1"].weight.grad.clone()
    assert not torch.allclose(gradients[0.0], gradients[0.1], rtol=1e-4, atol=0)
    assert not torch.allclose(gradients[0.1], gradients[0.7], rtol=1e-4, atol=0)


def test_deep_supervision_is_the_main_loss_of_every_stage(make_trainer) -> None:
    trainer = make_trainer("MultiLayerLaFTer", {".DEEP_SUPERVISION": 0.5, ".LABEL_SMOOTHING": 0.2})
    trainer.student.set_classifier(torch.randn(3, 24))
    prediction = trainer.student(torch.randn(2, 3, 32, 32))
    target = TrainingTarget(torch.tensor([0, 1]), torch.tensor([True, False]), torch.ones(2))
    counted = prediction.stage_logits[:, 0]  # (S, C), of the one image that counts
    per_stage = [cross_entropy(logits, torch.tensor(0), label_smoothing=0.2) for logits in counted]
    found = trainer.student_losses(prediction, target)["deep"]
    torch.testing.assert_close(found, 0.5 * torch.stack(per_stage).mean())


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        ("HybridCascadeLaFTer", [[5], [13]], r"HYBRIDCASCADELAFTER.STAGES on local-dir:.*block 13 is outside 1\.\.12"),
        ("HybridCascadeLaFTer", [[5, 6], [7]], r"HYBRIDCASCADELAFTER.STAGES on .*ends with block 7, but the tower has 12"),
        ("MultiLayerLaFTer", [[1, 2], [3, 4, 5, 6]], r"MULTILAYERLAFTER.STAGES on .*block 7 is in no stage; .*cover 1\.\.12"),
    ],
)
def test_list_that_does_not_fit_the_tower_names_key_and_block(name: str, stages: list, message: str, make_trainer) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(name, {".STAGES": stages})


@pytest.mark.parametrize(("name", "depth"), [("HybridCascadeLaFTer", 2), ("MultiLayerLaFTer", 3)])
def test_tower_too_shallow_for_the_plan_asks_for_a_list(name: str, depth: int, make_trainer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", clip_config(depth=depth))
    with pytest.raises(ValueError, match=f"STAGE_SCHEME on .* {depth} blocks is too shallow .* give the stages as lists"):
        make_trainer(name, {"MODEL.BACKBONE.NAME": clip})
    trainer = make_trainer(name, {"MODEL.BACKBONE.NAME": clip, ".STAGES": [[1], list(range(2, depth + 1))], **ONE_EPOCH})
    trainer.train()
    assert len(trainer.student.stages) == 2


MULTILAYER_PRESETS = {
    "deep": {".PROMPT_MODE": "deep", ".STAGE_SCHEME": "even"},
    "accumulate": {".PROMPT_MODE": "accumulate", ".STAGE_SCHEME": "shallow_deep", ".GRAD_CKPT": True},
    "shared": {".READOUT": "shared", ".NGA_MODE": "last", ".FUSION": "sum"},
    "copies": {".STAGE_CLASSIFIER": "copy", ".NGA_MODE": "free", ".CONS_PAIRS": "all", ".DEEP_SUPERVISION": 0.3},
    "no_prompts": {".PROMPT_TOKENS": 0, ".NGA_MODE": "mean"},
    "one_stage": {".STAGES": [list(range(1, 13))], ".FEAT_NORM": "none"},
    "one_block_stages": {".STAGES": [[block] for block in range(1, 13)], ".PROMPT_MODE": "accumulate"},
}


@pytest.mark.parametrize("prec", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", MULTILAYER_PRESETS)
def test_multilayer_preset_trains_every_declared_parameter(preset: str, prec: str, make_trainer) -> None:
    trainer = make_trainer("MultiLayerLaFTer", {**ONE_EPOCH, ".PREC": prec, **MULTILAYER_PRESETS[preset]})
    before = weights(trainer)
    trainer.train()  # raises if a declared parameter gets no gradient
    after = trainer.adapt.state_dict()
    assert [name for name, value in before.items() if torch.equal(after[name], value)] == []
    assert all(p.dtype == torch.float32 for p in trainer.adapt.parameters())
    assert len(trainer.report.rows[-1]["fusion"]) == len(trainer.student.stages)


@pytest.mark.parametrize("name", BOTH)
def test_defect_29_one_stage_and_one_block_stages_have_nothing_to_weigh(name: str, make_trainer) -> None:
    every = [[block] for block in range(1, 13)]
    plans = {"one": [list(range(1, 13))], "blocks": every}
    for run, stages in plans.items():
        trainer = make_trainer(name, {".STAGES": stages, **ONE_EPOCH}, run=run)
        assert hasattr(trainer.adapt.nga, "rho") == (run == "one")
        assert hasattr(trainer.adapt.fusion, "beta") == (run == "blocks")
        trainer.train()
        assert (trainer.report.rows[-1]["consistency"] > 0) == (run == "blocks")


@pytest.mark.parametrize("name", BOTH)
def test_dual_head_is_fused_like_the_classifier(name: str, make_trainer) -> None:
    overrides = {"DATASET.NAME": "TinyMoods", ".DUAL.ENABLED": True, ".DUAL.STRATEGY": "strategy1", ".DUAL.HEADS": "dual"}
    trainer = make_trainer(name, overrides | {".DEEP_SUPERVISION": 0.2})
    trainer.student.set_classifier(torch.randn(4, 24))
    prediction = trainer.student(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(prediction.distribution_logits, prediction.logits)  # both heads start from the same weight
    trainer.train()
    assert not torch.equal(trainer.adapt.distribution_classifier.weight, trainer.adapt.classifier.weight)


def original_of(name: str) -> dict[str, object]:
    """Settings of the shipped `original.yaml` that concern the method, for `make_trainer`."""
    folder = {"HybridCascadeLaFTer": "hybrid_cascade_lafter", "MultiLayerLaFTer": "multilayer_lafter"}[name]
    settings, problems = read_yaml(str(CONFIGS / folder / "original.yaml"))
    assert problems == []
    prefix = f"TRAINER.{name.upper()}"
    return {s.key.removeprefix(prefix): s.value for s in settings if s.key.startswith((prefix, "TEST.", "OPTIM.LR"))}


@pytest.mark.parametrize("name", BOTH)
def test_original_design_learns_class_and_distribution_from_labels(name: str, make_trainer) -> None:
    room = {"OPTIM.MAX_EPOCH": 7, ".WARMUP_EPOCHS": 3, "DATASET.NAME": "TinyMoods"}
    if name == "MultiLayerLaFTer":
        room |= {".PROGRESSIVE": True}
    trainer = make_trainer(name, original_of(name) | room)
    node, student = trainer.settings, trainer.student
    assert (node.MODE, node.DUAL.STRATEGY, node.DUAL.LOSS, node.DUAL.TEMPERATURE) == ("supervised", "strategy1", "kl", 16.0)
    assert (node.NGA_OFFSET, node.NGA_SIGMA_MIN, node.CONS_DETACH, node.ADAPTER_LR_MULT) == (1, 0.05, False, 5.0)
    assert student.stage_weights()["fusion"] == pytest.approx([1 / len(student.stages)] * len(student.stages))
    assert student.prompt_mode == ("accumulate" if name == "MultiLayerLaFTer" else "replace")
    trainer.train()
    rows = trainer.report.rows
    assert math.isfinite(rows[-1]["loss"]) and rows[-1]["main"] < rows[0]["main"]
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    scores = trainer.model_inference(images)
    torch.testing.assert_close(scores.facts["distribution"], (scores.data / 16.0).softmax(dim=-1))


PROGRESSIVE = {
    "OPTIM.MAX_EPOCH": 12,
    ".PROGRESSIVE": True,
    ".WARMUP_EPOCHS": 3,
    ".TEACHER": "self",
    ".DIST_ALIGN": "uniform",
    ".GRAD_ACCUM": 2,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 3,
    "DATALOADER.TRAIN_X.SAMPLER": "RandomSampler",
}


RATES = {"classifier": 5.0, "scalars": 0.1, "stage weights": 0.1}  # times those of all other groups


@pytest.mark.parametrize("name", ["LaFTer", *BOTH])
def test_defect_6_rates_and_weights_of_resumed_runs_equal_the_straight_run(name: str, tiny_world: Path, tmp_path: Path) -> None:
    overrides = {k: v for k, v in PROGRESSIVE.items() if name == "MultiLayerLaFTer" or k != ".PROGRESSIVE"}
    overrides |= {".SCHEDULER": "warmup_constant", ".ADAPTER_LR_MULT": 5.0, ".FEAT_NORM": "l2"}
    straight = build(make_cfg(tiny_world, tmp_path / "straight", name, overrides))
    expected_rates = rates(straight)
    names = [group["name"] for group in straight.optim.param_groups]
    steps = len(expected_rates) // 12
    for epoch in range(12):
        factor = (0.1, 0.4, 0.7)[epoch] if epoch < 3 else 1.0
        assert expected_rates[epoch * steps] == pytest.approx([1e-3 * RATES.get(name, 1.0) * factor for name in names])
    expected, logits = weights(straight), test_logits(straight)
    for start in (1, 3, 7):
        folder = tmp_path / f"killed{start}"
        kill_in_epoch(build(make_cfg(tiny_world, folder, name, overrides)), start)
        if start == 3:
            shutil.rmtree(tmp_path / "cache")
        set_random_seed(99)
        resumed = build(make_cfg(tiny_world, folder, name, overrides))
        assert rates(resumed) == expected_rates[steps * start :]
        assert_same(weights(resumed), expected)
        assert torch.equal(test_logits(resumed), logits)


def test_labels_of_train_and_val_are_never_read(tiny_world: Path, tmp_path: Path, monkeypatch) -> None:
    overrides = PROGRESSIVE | {"OPTIM.MAX_EPOCH": 4, ".PROGRESSIVE_WARMUP": 1, ".PROGRESSIVE_EPOCHS": 2}
    found = []
    for shift in (0, 1):
        monkeypatch.setattr(TinyColours, "label_shift", shift)
        trainer = build(make_cfg(tiny_world, tmp_path / f"shift{shift}", "MultiLayerLaFTer", overrides))
        trainer.train()
        found.append(weights(trainer))
    assert trainer.dm.dataset.train_x[0].label == 1  # the labels did change
    assert_same(found[1], found[0])

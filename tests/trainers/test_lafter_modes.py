"""What each mode learns from, for every trainer of the LaFTer family; a new one is covered as soon as it is registered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from tiny_moods import MOODS
from tiny_world import TinyColours, build, make_cfg, test_logits

import trainers
from trainers.lafter import LaFTer

FAMILY = [name for name in trainers.__all__ if issubclass(TRAINER_REGISTRY.get(name), LaFTer)]
MOODY = {"DATASET.NAME": "TinyMoods"}
DUAL = {".DUAL.ENABLED": True, ".DUAL.STRATEGY": "strategy1"}
MODES = {
    "pseudo": {},
    "pseudo_dual": DUAL,
    "pseudo_two_heads": DUAL | {".DUAL.HEADS": "dual"},
    "pseudo_ema": {".TEACHER": "ema", ".EMA_DECAY": 0.5},
    "supervised": {".MODE": "supervised"},
    "supervised_votes": {".MODE": "supervised", ".DUAL.ENABLED": True, ".DUAL.TEMPERATURE": 16.0, ".DUAL.LOSS": "kl"},
    "supervised_two_heads": {".MODE": "supervised", ".DUAL.ENABLED": True, ".DUAL.HEADS": "dual", ".DUAL.TEMPERATURE": 4.0},
    "direct": {".MODE": "direct"},
}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.adapt.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def start(trainer) -> None:
    """Do everything up to the first batch."""
    trainer.before_train()
    trainer.before_epoch()
    trainer.set_model_mode("train")


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_end_to_end(mode: str, name: str, make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(name, MOODY | MODES[mode])
    trainer.train()
    rows = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in rows] == [1, 2] and all(math.isfinite(row["loss"]) for row in rows)
    label_free = mode.startswith("pseudo")
    names = {"agreement", "proxy", "change_rate", "counted", "teacher_confidence"}
    assert names & set(rows[0]) == (names if label_free else set())
    assert ("train_accuracy" in rows[0]) != label_free
    assert sum(rows[1]["histogram"]) == 8
    assert trainer.test() == trainer.test()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("mode", ["pseudo_dual", "pseudo_two_heads"])
def test_labels_and_votes_stay_unread_in_label_free_runs(mode: str, name: str, tiny_world: Path, tmp_path, monkeypatch) -> None:
    found = []
    for shift in (0, 1):
        monkeypatch.setattr(TinyColours, "label_shift", shift)
        trainer = build(make_cfg(tiny_world, tmp_path / f"shift{shift}", name, MOODY | MODES[mode]))
        trainer.train()
        found.append(weights(trainer))
    assert trainer.dm.dataset.train_x[0].label == 1  # the labels did change
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("mode", ["supervised", "supervised_votes", "direct"])
def test_supervised_runs_do_read_them(mode: str, name: str, tiny_world: Path, tmp_path, monkeypatch) -> None:
    found = []
    for shift in (0, 1):
        monkeypatch.setattr(TinyColours, "label_shift", shift)
        trainer = build(make_cfg(tiny_world, tmp_path / f"shift{shift}", name, MOODY | MODES[mode] | {"OPTIM.MAX_EPOCH": 2}))
        trainer.train()
        found.append(weights(trainer))
    assert not torch.equal(found[0]["classifier.weight"], found[1]["classifier.weight"])


@pytest.mark.parametrize("name", FAMILY)
def test_supervised_learns_its_training_images(name: str, make_trainer) -> None:
    overrides = {".MODE": "supervised", ".AUGMENT": "none", "OPTIM.MAX_EPOCH": 12, "OPTIM.LR": 0.01, ".SCHEDULER": "constant"}
    if name == "MultiLayerLaFTer":
        overrides[".PROGRESSIVE"] = False
    trainer = make_trainer(name, overrides)
    trainer.train()
    rows = trainer.report.rows
    assert rows[-1]["train_accuracy"] == 1.0 > rows[0]["train_accuracy"]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("name", FAMILY)
def test_direct_needs_no_texts_starts_at_random_and_learns_distributions(name: str, make_trainer, tmp_path, caplog) -> None:
    overrides = MOODY | {".MODE": "direct", ".TEXT.TEMPLATES": str(tmp_path / "missing.json")}
    with caplog.at_level("INFO"):
        trainer = make_trainer(name, overrides if name == "LaFTer" else overrides | {".STAGE_CLASSIFIER": "copy"})
    assert "MODE direct switches the dual task on (DUAL.ENABLED is False)" in caplog.messages
    start(trainer)
    weight, bound = trainer.student.adapt.classifier.weight, 1 / math.sqrt(trainer.student.info.embed_dim)
    assert torch.equal(trainer.student.text_classifier_weight(), trainer.text_classifier.weight)
    assert 0.9 * bound < weight.abs().max() <= bound and weight.std() > 0.4 * bound
    parsed = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    assert trainer._find_target(parsed).distribution.shape == (4, 4)


@pytest.mark.parametrize("mode", ["supervised", "direct"])
def test_unlabelled_images_fail_loudly_with_all_other_problems(mode: str, make_trainer) -> None:
    trainer = make_trainer(
        "LaFTer", {"DATASET.NAME": "TinyUnlabelled", ".MODE": mode, ".DUAL.ENABLED": True, ".DUAL.RING": ["awe", "joy"]}
    )
    with pytest.raises(ValueError) as caught:
        trainer.train()
    lines = str(caught.value).splitlines()
    assert lines[0] == "LaFTer: 2 problem(s) with the data"
    assert lines[1].startswith("1 training image(s) have no label, e.g. ") and f"MODE {mode} learns from labels" in lines[1]
    assert lines[2].startswith("DUAL.RING (or the data set's ring) ['awe', 'joy'] is no permutation")


def test_unlabelled_images_are_what_pseudo_mode_is_for(make_trainer) -> None:
    make_trainer("LaFTer", {"DATASET.NAME": "TinyUnlabelled"}).train()


def test_both_crops_are_learned_from_and_their_losses_averaged(make_trainer) -> None:
    overrides = {".MODE": "supervised", ".AUGMENT": "two_crop", ".DUAL.ENABLED": True}
    trainer = make_trainer("HybridCascadeLaFTer", MOODY | overrides)
    start(trainer)
    batch = next(iter(trainer.train_loader_x))
    assert not torch.equal(batch["img"], batch["img2"])
    parsed = trainer.parse_batch_train(batch)
    assert parsed.images.shape[0] == 8 and parsed.weak is None
    both = trainer.compute_losses(parsed)
    single = []
    for view in ("img", "img2"):
        one = trainer.parse_batch_train({key: value for key, value in batch.items() if key != "img2"} | {"img": batch[view]})
        single.append(trainer.compute_losses(one))
    for part in ("main", "consistency"):
        assert both[part].item() == pytest.approx((single[0][part] + single[1][part]).item() / 2, rel=1e-5)


def test_default_view_of_the_supervised_modes_is_the_strong_one(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".MODE": "supervised"})
    assert trainer.views == "single_crop" and "img2" not in trainer.train_loader_x.dataset[0]


def test_validation_may_choose_in_supervised_modes(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("LaFTer", {".MODE": "supervised", "TEST.FINAL_MODEL": "best_val", "OPTIM.MAX_EPOCH": 3})
    trainer.train()
    best = torch.load(tmp_path / "run" / "adapt" / "model-best.pth.tar", weights_only=True)
    assert_same(weights(trainer), best["state_dict"])


def test_best_val_without_val_and_val_images_in_test_are_problems_with_the_data(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".MODE": "supervised", "TEST.FINAL_MODEL": "best_val"})
    data = trainer.dm.dataset
    data.val.append(data.test[0])
    assert trainer.data_problems() == [f"1 labelled image(s) are in both val and test, e.g. {data.test[0].impath}"]
    del data.val[:]
    assert trainer.data_problems() == [
        "TEST.FINAL_MODEL is 'best_val', but the data set has no val split with labels; expected last_step"
    ]


@pytest.mark.parametrize("name", FAMILY)
def test_heads_dual_starts_from_the_text_classifier_and_trains_in_its_group(name: str, make_trainer) -> None:
    trainer = make_trainer(name, MOODY | MODES["supervised_two_heads"] | {".ADAPTER_LR_MULT": 3.0, ".SCHEDULER": "constant"})
    trainer.before_train()
    head = trainer.adapt.distribution_classifier.weight
    assert torch.equal(head, trainer.text_classifier.weight)
    (group,) = [group for group in trainer.optim.param_groups if group["name"] == "classifier"]
    assert any(p is head for p in group["params"]) and len(group["params"]) == 2
    assert group["initial_lr"] == pytest.approx(3e-3) and group["weight_decay"] == trainer.cfg.OPTIM.WEIGHT_DECAY
    trainer.before_epoch()
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert not torch.equal(head, trainer.text_classifier.weight) and not torch.equal(head, trainer.adapt.classifier.weight)


@pytest.mark.parametrize("name", FAMILY)
def test_one_head_is_the_default(name: str, make_trainer) -> None:
    trainer = make_trainer(name, MOODY | DUAL)
    assert trainer.adapt.distribution_classifier is None
    assert not any("distribution" in key for key in trainer.adapt.state_dict())


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("heads", ["single", "dual"])
def test_defect_4_tested_distribution_has_the_training_temperature(name: str, heads: str, make_trainer) -> None:
    trainer = make_trainer(name, MOODY | MODES["supervised_votes"] | {".DUAL.HEADS": heads})
    trainer.train()
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    scores = trainer.model_inference(images)
    with torch.no_grad():
        prediction = trainer.student(images)
    assert torch.equal(scores.as_subclass(torch.Tensor), prediction.logits)
    judged = prediction.logits if heads == "single" else prediction.distribution_logits
    assert scores.shape == scores.facts["distribution"].shape == (5, len(MOODS))
    assert torch.allclose(scores.facts["distribution"], (judged / 16).softmax(-1))
    assert not torch.allclose(scores.facts["distribution"], prediction.logits.softmax(-1), atol=1e-3)


@pytest.mark.parametrize("name", FAMILY)
def test_defect_2_the_test_runs_the_path_of_training(name: str, make_trainer) -> None:
    trainer = make_trainer(name, MOODY | MODES["supervised_two_heads"])
    start(trainer)
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    trained = trainer._predict(images)
    trainer.set_model_mode("eval")
    scores = trainer.model_inference(images)
    assert torch.equal(scores.as_subclass(torch.Tensor), trained.logits)
    assert torch.equal(scores.facts["distribution"], (trained.distribution_logits / 4.0).softmax(-1))


def test_without_the_dual_task_the_distribution_is_the_plain_softmax(make_trainer) -> None:
    trainer = make_trainer("LaFTer", MOODY | {".DUAL.TEMPERATURE": 16.0})
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    scores = trainer.model_inference(images)
    assert torch.equal(scores.facts["distribution"], scores.softmax(-1))


@pytest.mark.parametrize("mode", ["supervised_two_heads", "direct"])
def test_a_trained_run_tests_alike_when_loaded(mode: str, tiny_world: Path, tmp_path: Path) -> None:
    cfg = make_cfg(tiny_world, tmp_path / "run", "LaFTer", MOODY | MODES[mode])
    trained = build(cfg)
    trained.train()
    loaded = build(cfg)
    loaded.load_model(cfg.OUTPUT_DIR, epoch=2)
    assert torch.equal(test_logits(loaded), test_logits(trained))


def test_text_phase_of_a_supervised_run_can_stand_alone(make_trainer) -> None:
    trainer = make_trainer("LaFTer", MOODY | {".MODE": "supervised", ".PHASE": "text_only", ".DUAL.ENABLED": True})
    trainer.train()
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    scores = trainer.model_inference(images)
    assert torch.equal(scores.facts["distribution"], scores.softmax(-1))


def test_pictures_of_a_supervised_run_claim_no_pseudo_labels(make_trainer, with_pictures, tmp_path: Path) -> None:
    make_trainer("LaFTer", MOODY | {".MODE": "supervised"}).train()
    assert (tmp_path / "run" / "training_predictions.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "pseudo_labels.png").exists()

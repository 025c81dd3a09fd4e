"""Whole runs: resume, label-freedom, caches, phases, choices of the final weights. All on the tiny world."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from dassl.utils import set_random_seed
from tiny_moods import TinyMoods
from tiny_world import TinyColours, build, make_cfg, test_logits

EPOCHS = 8
RUNS = {
    "self": ("LaFTer", {".TEACHER": "self", ".DIST_ALIGN": "uniform", ".SCHEDULER": "warmup_cosine", ".WARMUP_EPOCHS": 2}),
    "shared": ("LaFTer", {".TEACHER": "shared", ".SCHEDULER": "warmup_constant", ".SCHEDULER_STEP": "update"}),
    "ema": ("LaFTer", {".TEACHER": "ema", ".EMA_DECAY": 0.7, ".CONF_THRESHOLD": 0.37, "OPTIM.LR": 0.01}),
    "supervised": (
        "LaFTer",
        {".MODE": "supervised", "DATASET.NAME": TinyMoods.__name__, ".DUAL.ENABLED": True, ".DUAL.HEADS": "dual"},
    ),
    "frozen": ("HybridCascadeLaFTer", {".KEEP_SHARE": 0.7, ".GRAD_ACCUM": 2, ".MAX_GRAD_NORM": 0.5, ".SELECT": "proxy"}),
}


class Killed(Exception):
    """Stands for a run that ends from outside."""


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.adapt.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []


def rates(trainer) -> list[list[float]]:
    """Train, recording the lr of every group at each step."""
    trace, inner = [], trainer.forward_backward

    def record(batch: dict) -> dict[str, float]:
        trace.append([group["lr"] for group in trainer.optim.param_groups])
        return inner(batch)

    trainer.forward_backward = record
    trainer.train()
    return trace


def kill_in_epoch(trainer, epoch: int) -> None:
    """Train until the second batch of `epoch` (from 0)."""
    inner = trainer.forward_backward

    def step(batch: dict) -> dict[str, float]:
        if trainer.epoch == epoch and trainer.batch_idx == 1:
            raise Killed
        return inner(batch)

    trainer.forward_backward = step
    with pytest.raises(Killed):
        trainer.train()


@pytest.mark.parametrize("case", RUNS)
def test_run_killed_and_resumed_equals_the_straight_run(case: str, tiny_world: Path, tmp_path: Path) -> None:
    name, overrides = RUNS[case]
    overrides = overrides | {"OPTIM.MAX_EPOCH": EPOCHS}
    straight = build(make_cfg(tiny_world, tmp_path / "straight", name, overrides))
    expected_rates = rates(straight)
    expected, logits = weights(straight), test_logits(straight)
    for start in (1, 3, 7):
        folder = tmp_path / f"killed{start}"
        kill_in_epoch(build(make_cfg(tiny_world, folder, name, overrides)), start)
        if start == 3:
            shutil.rmtree(tmp_path / "cache")  # a cold resume has to equal a warm one
        set_random_seed(99)
        resumed = build(make_cfg(tiny_world, folder, name, overrides))
        assert rates(resumed) == expected_rates[2 * start :]
        assert_same(weights(resumed), expected)
        assert torch.equal(test_logits(resumed), logits)
        assert [row["epoch"] for row in resumed.report.rows] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("case", sorted(set(RUNS) - {"supervised"}))
def test_labels_of_train_and_val_are_never_read(case: str, tiny_world: Path, tmp_path: Path, monkeypatch) -> None:
    name, overrides = RUNS[case]
    overrides = overrides | {"OPTIM.MAX_EPOCH": 3}
    found = []
    for shift in (0, 1):
        monkeypatch.setattr(TinyColours, "label_shift", shift)
        trainer = build(make_cfg(tiny_world, tmp_path / f"shift{shift}", name, overrides))
        trainer.train()
        found.append(weights(trainer))
    assert trainer.dm.dataset.train_x[0].label == 1  # the labels did change
    assert_same(found[1], found[0])


def test_frozen_labels_are_the_same_cold_and_warm_and_made_once(tiny_world: Path, tmp_path: Path, monkeypatch) -> None:
    overrides = {".DIST_ALIGN": "shares", ".CLASS_SHARES": [0.5, 0.3, 0.2], "DATALOADER.NUM_WORKERS": 0}
    found, labels, passes = [], [], []
    for run in ("cold", "warm"):
        trainer = build(make_cfg(tiny_world, tmp_path / run, "LaFTer", overrides))
        inner = trainer.judges.frozen
        trainer.judges.frozen = lambda weak, inner=inner, run=run: passes.append(run) or inner(weak)
        trainer.train()
        found.append(weights(trainer))
        labels.append(trainer.teacher.label(torch.arange(8), None).labels)
    assert passes == ["cold", "cold"]  # eight images in batches of five, before the first epoch only
    assert torch.equal(labels[0], labels[1])
    assert_same(found[1], found[0])


def test_frozen_labels_of_a_resumed_run_come_from_the_untuned_norms(tiny_world: Path, tmp_path: Path) -> None:
    overrides = {"OPTIM.MAX_EPOCH": 2, "OPTIM.LR": 0.05}
    first = build(make_cfg(tiny_world, tmp_path / "run", "LaFTer", overrides))
    first.train()
    shutil.rmtree(tmp_path / "cache")
    resumed = build(make_cfg(tiny_world, tmp_path / "run", "LaFTer", overrides))
    resumed.train()
    resumed.teacher.start_epoch(0)
    everything = torch.arange(8)
    expected, found = first.teacher.label(everything, None), resumed.teacher.label(everything, None)
    assert torch.equal(found.labels, expected.labels) and torch.equal(found.confidence, expected.confidence)


def test_label_pass_leaves_the_global_generators_alone(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".TEACHER": "self"})
    trainer.before_train()
    before = torch.get_rng_state()
    trainer.teacher.start_epoch(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_no_weight_of_a_plain_view_run(tiny_world: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        overrides = {".AUGMENT": "none", ".CACHE_IMAGES": "ram", "DATALOADER.NUM_WORKERS": workers, ".TEACHER": "self"}
        trainer = build(make_cfg(tiny_world, tmp_path / str(workers), "LaFTer", overrides))
        trainer.train()
        found.append(weights(trainer))
    assert_same(found[1], found[0])


def test_text_only_saves_epoch_0_and_tests_the_classifier_on_plain_features(tiny_world: Path, tmp_path: Path) -> None:
    for name in ("LaFTer", "HybridCascadeLaFTer"):
        cfg = make_cfg(tiny_world, tmp_path / name, name, {".PHASE": "text_only"})
        trainer = build(cfg)
        trainer.train()
        saved = torch.load(tmp_path / name / "adapt" / "model.pth.tar-0", weights_only=True)
        assert saved["epoch"] == 0
        assert torch.equal(saved["state_dict"]["classifier.weight"], trainer.text_classifier.weight)
        images = trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]
        with torch.no_grad():
            expected = trainer.text_classifier(trainer.student.plain_features(images))
        assert torch.equal(trainer.model_inference(images), expected)
        again = build(cfg)
        again.load_model(cfg.OUTPUT_DIR, epoch=0)
        assert again.test() == trainer.test()


def test_eval_only_repeats_the_accuracy_of_the_run(tiny_world: Path, tmp_path: Path) -> None:
    cfg = make_cfg(tiny_world, tmp_path / "run", "HybridCascadeLaFTer", {".SELECT": "proxy"})
    trained = build(cfg)
    trained.train()
    loaded = build(cfg)
    loaded.load_model(cfg.OUTPUT_DIR)
    assert torch.equal(test_logits(loaded), test_logits(trained))
    assert loaded.test() == trained.test()


def test_proxy_keeps_the_epoch_with_the_highest_score(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("LaFTer", {".SELECT": "proxy", "OPTIM.MAX_EPOCH": 4, "OPTIM.LR": 0.02})
    trainer.train()
    scores = [row["proxy"] for row in trainer.report.rows]
    best = torch.load(tmp_path / "run" / "adapt" / "model-best.pth.tar", weights_only=True)
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert_same(weights(trainer), best["state_dict"])


def test_report_test_max_prints_apart_and_changes_nothing(tiny_world: Path, tmp_path: Path, caplog) -> None:
    found = []
    for report in (False, True):
        trainer = build(make_cfg(tiny_world, tmp_path / str(report), "LaFTer", {".REPORT_TEST_MAX": report}))
        with caplog.at_level("INFO"):
            trainer.train()
        found.append(weights(trainer))
    assert_same(found[1], found[0])
    (line,) = [record.getMessage() for record in caplog.records if "test-selected" in record.getMessage()]
    assert line.startswith("max over epochs (test-selected, published protocol): ") and "* accuracy:" not in line


def test_run_writes_its_report_and_pictures(make_trainer, with_pictures, tmp_path: Path) -> None:
    trainer = make_trainer("HybridCascadeLaFTer")
    trainer.train()
    rows = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] == pytest.approx(rows[1]["main"] + rows[1]["consistency"])
    assert sum(rows[1]["histogram"]) == 8 and rows[0]["change_rate"] is None and rows[1]["change_rate"] == 0.0
    for picture in ("losses", "pseudo_labels", "stage_weights", "confusion_matrix"):
        assert (tmp_path / "run" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_accumulated_batches_step_like_one_batch(tiny_world: Path, tmp_path: Path) -> None:
    found = []
    for accumulate, size in ((1, 8), (2, 4)):
        overrides = {
            ".AUGMENT": "none",
            ".GRAD_ACCUM": accumulate,
            "DATALOADER.TRAIN_X.BATCH_SIZE": size,
            "OPTIM.NAME": "sgd",
            "OPTIM.LR": 0.1,
            "OPTIM.MAX_EPOCH": 1,
        }
        trainer = build(make_cfg(tiny_world, tmp_path / str(size), "LaFTer", overrides))
        trainer.train()
        found.append(weights(trainer))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=1e-6, rtol=0)


def test_nothing_counted_is_a_zero_loss_that_trains_nothing_wrong(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".CONF_THRESHOLD": 0.999, ".PREC": "fp32"})
    trainer.train()
    assert [row["loss"] for row in trainer.report.rows] == [0.0, 0.0]
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_a_checkpoint_of_ten_classes_on_b32_would_stay_below_two_megabytes(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("LaFTer")
    trainer.train()
    size = (tmp_path / "run" / "adapt" / "model.pth.tar-2").stat().st_size
    numbers = sum(p.numel() for p in trainer.adapt.parameters())
    overhead = size - 3 * 4 * numbers  # weights and AdamW's two moments, fp32
    assert overhead + 3 * 4 * (78_336 + 512 * 10) + 4 * 512 * 10 < 2e6

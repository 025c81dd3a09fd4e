"""The presets for emotions on a small tree in Emotion6's layout: class and distribution are learned and measured."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from dassl.utils import set_random_seed

import datasets  # noqa: F401  (registers the data sets)
import train
from trainers import runs

sys.path.append(str(Path(__file__).parent / "datasets"))  # the trees live beside the tests of the data sets

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRESETS = {
    "lafter/emotion": "LaFTer",
    "multilayer_lafter/original": "MultiLayerLaFTer",
    "hybrid_cascade_lafter/original": "HybridCascadeLaFTer",
    "multilayer_lafter/vit_b32": "MultiLayerLaFTer",
    "hybrid_cascade_lafter/vit_b32": "HybridCascadeLaFTer",
    "hybrid_cascade_lafter/cascadeclip": "HybridCascadeLaFTer",
    "hybrid_cascade_lafter/keep_last": "HybridCascadeLaFTer",
}
EMOTION = ("lafter/emotion", "multilayer_lafter/original", "hybrid_cascade_lafter/original")  # made for labels and votes
QUICK = {
    "USE_CUDA": "False",
    "OPTIM.MAX_EPOCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "DATALOADER.TRAIN_X.BATCH_SIZE": "20",
}


def build(preset: str, world: Path, root: Path, output: Path, **settings: str):
    """Build a short run of a preset on the tiny CLIP."""
    name = PRESETS[preset]
    node = f"TRAINER.{name.upper()}"
    own = {f"{node}.TEXT.EPOCHS": "5", f"{node}.TEXT.CACHE_DIR": str(output / "cache"), f"{node}.WARMUP_EPOCHS": "1"}
    if name == "MultiLayerLaFTer":
        own[f"{node}.PROGRESSIVE"] = "False"
    if preset not in EMOTION:
        own |= {f"{node}.MODE": "supervised", f"{node}.DUAL.ENABLED": "True", "TEST.EVALUATOR": "LabelDistribution"}
    own |= {f"{node}.{key}": value for key, value in settings.items()}
    words = ["--trainer", name, "--config-file", str(CONFIGS / f"trainers/{preset}.yaml"), "--root", str(root)]
    words += ["--dataset-config-file", str(CONFIGS / "datasets/emotion6.yaml"), "--output-dir", str(output)]
    words += ["--backbone", f"local-dir:{world / 'clip'}", "--seed", "1"]
    cfg = runs.build_cfg(train.parse_args([*words, *(word for pair in (QUICK | own).items() for word in pair)]))
    set_random_seed(1)
    return runs.build_trainer(cfg)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_learns_class_and_distribution(preset: str, tiny_world: Path, tmp_path: Path, caplog, capsys) -> None:
    from fake_trees import write_emotion6

    trainer = build(preset, tiny_world, write_emotion6(tmp_path / "data"), tmp_path / "run")
    with caplog.at_level("INFO"):
        trainer.train()
    (line,) = [message for message in caplog.messages if message.startswith("Distributions of ")]
    assert ("0 synthetic" in line) == (not preset.endswith("original"))  # that makes all of its own from the labels
    assert all(math.isfinite(row["loss"]) and "train_accuracy" in row for row in trainer.report.rows)
    measured = json.loads((tmp_path / "run" / "label_distribution.json").read_text(encoding="utf-8"))
    metrics = measured["metrics"]
    assert measured["targets"] == {"voted": len(trainer.dm.dataset.test), "synthetic": 0, "absent": 0}
    assert 0 <= metrics["kl"] < math.log(1e12) and 0 <= metrics["intersection"] <= 1
    last = [line for line in capsys.readouterr().out.splitlines() if "* accuracy:" in line][-1]
    assert last == f"* accuracy: {metrics['accuracy']:.1f}%"


def test_measured_distribution_has_the_temperature_of_training(tiny_world: Path, tmp_path: Path) -> None:
    from fake_trees import write_emotion6

    trainer = build("hybrid_cascade_lafter/original", tiny_world, write_emotion6(tmp_path / "data"), tmp_path / "run")
    seen = []
    process = trainer.evaluator.process
    trainer.evaluator.process = lambda scores, target: seen.append((scores, target)) or process(scores, target)
    trainer.test()
    for scores, target in seen:
        plain = scores.as_subclass(torch.Tensor)
        assert torch.allclose(scores.facts["distribution"], (plain / 16.0).softmax(-1))
        assert target.facts["has_distribution"].all()
        assert torch.allclose(target.facts["distribution"].sum(1), torch.ones(len(plain)))

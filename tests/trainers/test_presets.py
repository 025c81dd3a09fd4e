"""Every shipped preset of the LaFTer family runs in fp32 and in bf16, and trains what it declares around the loaded CLIP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_moods  # noqa: F401  (registers TinyMoods)
import torch

from trainers.config_merge import read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainers"
TRAINERS = {"lafter": "LaFTer", "multilayer_lafter": "MultiLayerLaFTer", "hybrid_cascade_lafter": "HybridCascadeLaFTer"}
PATHS = ("TEXT.TEMPLATES", "TEXT.DESCRIPTIONS", "TEXT.CACHE_DIR")


def method_of(folder: str, file: Path) -> dict[str, object]:
    """Settings of a preset that are about the method, for `make_trainer`."""
    found, problems = read_yaml(str(file))
    assert problems == []
    prefix = f"TRAINER.{TRAINERS[folder].upper()}"
    settings = {s.key.removeprefix(prefix): s.value for s in found if s.key.startswith((prefix, "TEST.", "OPTIM."))}
    assert not any(key.endswith(PATHS) for key in settings)
    return settings


def distinct_presets() -> dict[str, tuple[str, dict[str, object]]]:
    """Preset -> (trainer, settings); those that differ from another one in backbone and sizes only are left out."""
    found: dict[str, tuple[str, dict[str, object]]] = {}
    for folder, name in TRAINERS.items():
        known = []
        for file in sorted((CONFIGS / folder).glob("*.yaml")):
            settings = method_of(folder, file)
            if settings not in known:
                known.append(settings)
                found[f"{folder}/{file.stem}"] = name, settings
    return found


PRESETS = distinct_presets()
SHORT = {"OPTIM.MAX_EPOCH": 3, "OPTIM.LR": 1e-3, "DATASET.NAME": "TinyMoods", ".WARMUP_EPOCHS": 1, ".TEXT.EPOCHS": 5}


def test_named_recipes_are_among_the_presets() -> None:
    named = {"lafter/published", "lafter/emotion", "multilayer_lafter/original", "hybrid_cascade_lafter/original"}
    assert named | {"hybrid_cascade_lafter/cascadeclip", "hybrid_cascade_lafter/keep_last"} <= set(PRESETS)


@pytest.mark.parametrize("prec", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_runs_and_trains_what_it_declares(preset: str, prec: str, make_trainer) -> None:
    name, settings = PRESETS[preset]
    room = {".PROGRESSIVE": True, ".PROGRESSIVE_WARMUP": 1, ".PROGRESSIVE_EPOCHS": 1} if name == "MultiLayerLaFTer" else {}
    trainer = make_trainer(name, settings | SHORT | room | {".PREC": prec})
    visual = trainer.clip.model.visual
    clip = {id(p): p for p in visual.parameters()}
    declared = {id(p): p for group in trainer.groups for p in group.parameters}
    before = {key: p.detach().clone() for key, p in trainer.student.named_parameters()}
    trainer.train()
    assert math.isfinite(trainer.report.rows[-1]["loss"])
    assert {p.dtype for p in trainer.student.parameters()} == {torch.float32}
    blocks = visual.transformer.resblocks
    assert all(mine is theirs for mine, theirs in zip(trainer.student.driver.tower.blocks, blocks, strict=True))
    # The total is the CLIP and the declared groups, LayerNorms counted once; all else is as it was loaded.
    assert {id(p) for p in trainer.student.parameters()} == set(clip) | set(declared)
    assert {id(p) for p in declared.values()} == {id(p) for p in trainer.adapt.parameters()}
    changed = {key for key, p in trainer.student.named_parameters() if not torch.equal(p, before[key])}
    assert changed == {key for key, p in trainer.student.named_parameters() if id(p) in declared}

"""BgObjLLaVA's config: defaults are allowed, and everything that cannot work is said at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dassl
import pytest
from dassl.engine import TRAINER_REGISTRY
from tiny_world import make_cfg
from yacs.config import CfgNode

from trainers.bgobj_llava import checks
from trainers.bgobj_llava.config import CHOICES, RANGES
from trainers.config_merge import flatten

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def make_settings(tiny_world: Path, tmp_path: Path):
    def make(**overrides: Any) -> CfgNode:
        named = {f".{key.replace('__', '.')}": value for key, value in overrides.items()}
        return make_cfg(tiny_world, tmp_path / "run", "BgObjLLaVA", named)

    return make


def problems_of(cfg: CfgNode) -> list[str]:
    """What `check_cfg` says, without its headline."""
    trainer = TRAINER_REGISTRY.get("BgObjLLaVA")
    try:
        trainer.check_cfg(object.__new__(trainer), cfg)
    except ValueError as error:
        return str(error).splitlines()[1:]
    return []


def test_defaults_work(make_settings) -> None:
    assert problems_of(make_settings()) == []


def test_choices_and_ranges_belong_to_keys(make_settings) -> None:
    keys = {key for key, _ in flatten(make_settings().TRAINER.BGOBJLLAVA)}
    assert set(CHOICES) | set(RANGES) <= keys


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_word_outside_its_choices_is_refused_with_the_list(key: str, make_settings) -> None:
    (problem,) = [each for each in problems_of(make_settings(**{key: "nonsense"})) if "expected one of" in each]
    assert problem == f"TRAINER.BGOBJLLAVA.{key} is 'nonsense'; expected one of {', '.join(CHOICES[key])}"


WRONG = {
    "DET.BACKEND": "torchvision", "DET.FRAME": "half", "DET.MISSING": "skip", "DET.CONF": 1.5, "DET.IOU": 0.0, "DET.IMGSZ": 641,
    "DET.MAX": 0, "DET.MIN_AREA": -1.0, "DET.BGSUB_TAU": 255.0, "DET.BGSUB_FRAMES": 0, "MASK.RHO": 1.1, "MASK.DILATE": 5,
    "MASK.BLOCK": 0, "MASK.OVERLAP_RING": -1, "MASK.MAX_OBJ_FRAC": 0.0, "MASK.OBJECT_MODE": "all", "MASK.NO_DETECTION": "skip",
    "FUSION.LAYERS": 5, "TRAIN.LAST_K": 0, "LORA.R": 0, "LORA.ALPHA": 0.0, "LORA.DROPOUT": 1.0, "AUG.DILATE_MAX": 5,
    "AUG.SPURIOUS_P": 1.1, "AUG.DROP_P": -0.1, "AUG.P_FULL": 2.0, "AUG.BG_JITTER": -1.0, "MAX_LEN": 0, "DATA.MAX_DROP": 1.5,
    "CACHE.TAU": 255.0, "CACHE.TOPK": 0, "CACHE.ADMIT_AFTER": 0, "CACHE.AUDIT_EVERY": -1, "CACHE.DEVICE_GIB": -1.0,
    "CACHE.HOST_GIB": -1.0, "CACHE.DISK_GIB": -1.0, "GEN.MAX_NEW_TOKENS": 0, "VIS.EVERY": -1, "WARMUP_RATIO": 1.0,
    "SAVE_LATEST_PER_EPOCH": -1, "GRAD_ACCUM": 0, "MAX_GRAD_NORM": -1.0, "SCHEDULER": "linear", "SCHEDULER_STEP": "batch",
    "PREC": "fp8",
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_impossible_value_is_refused_by_key(key: str, make_settings) -> None:
    found = problems_of(make_settings(**{key: WRONG[key]}))
    assert any(problem.startswith(f"TRAINER.BGOBJLLAVA.{key} is {WRONG[key]!r}; expected") for problem in found), found


def test_every_key_with_a_range_is_tried() -> None:
    assert set(RANGES) <= set(WRONG)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "raster, flash": ({"POSITION": "raster", "ATTN": "flash_attention_2"}, "POSITION is 'raster', which flash attention"),
    "mask, flash": ({"ATTN": "flash_attention_2"}, "VIT_TRAIN is 'mask', but flash attention takes no group mask"),
    "mask in evaluation, flash": (
        {"ATTN": "flash_attention_2", "VIT_EVAL": "mask"}, "VIT_EVAL is 'mask', but flash attention takes no group mask",
    ),
    "flash without a GPU": ({"ATTN": "flash_attention_2"}, "ATTN is 'flash_attention_2', which needs a GPU"),
    "mask, ring": ({"MASK.OVERLAP_RING": 1}, "VIT_TRAIN is 'mask', which encodes each patch once, but .*OVERLAP_RING is 1"),
    "kv without a prefix": ({"SPLIT": "order_only"}, "CACHE.MODE is 'kv', but with .*SPLIT order_only"),
    "kv in raster order": ({"SPLIT": "isolate_only"}, "CACHE.MODE is 'kv', but with .*SPLIT isolate_only"),
    "tokens that saw objects": ({"SPLIT": "order_only", "CACHE.MODE": "tokens"}, "CACHE.MODE is 'tokens', but .*order_only"),
    "disk without a folder": ({"CACHE.DISK_GIB": 1.0}, "CACHE.DISK_GIB is 1.0, but .*CACHE.DIR is empty"),
    "folder without a budget": ({"CACHE.DIR": "cache"}, "CACHE.DIR is 'cache', but .*CACHE.DISK_GIB is 0, which keeps nothing"),
    "fusion without layers": ({"TRAIN.SCOPE": "fusion_projector"}, "TRAIN.SCOPE is 'fusion_projector', but .*LAYERS is 0"),
    "detector without weights": ({"DET.BACKEND": "rtdetr"}, "DET.WEIGHTS is empty; rtdetr expects"),
    "yolo without a file": ({"DET.BACKEND": "ultralytics"}, "DET.WEIGHTS is ''; ultralytics expects an existing"),
    "no side file": ({"DET.FILE": "nowhere.jsonl"}, "DET.FILE is 'nowhere.jsonl'; expected"),
    "no reference": ({"DET.BACKEND": "bgsub", "DET.REFERENCE": "nowhere.png"}, "DET.REFERENCE is 'nowhere.png'; expected"),
    "dassl counts epochs": ({"SCHEDULER": "dassl"}, "SCHEDULER_STEP is 'update', but .*SCHEDULER dassl counts epochs"),
    "best of no validation": ({"CHECKPOINT.KEEP": "best"}, "CHECKPOINT.KEEP is 'best', but TEST.FINAL_MODEL is 'last_step'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_is_refused(case: str, make_settings) -> None:
    overrides, message = CONTRADICTIONS[case]
    found = problems_of(make_settings(**overrides))
    assert any(re.match(rf"TRAINER\.BGOBJLLAVA\.{message}", problem) for problem in found), found


def test_six_contradictions_are_six_reports(make_settings) -> None:
    cfg = make_settings(**{
        "SPLIT": "isolate_only",  # with CACHE.MODE kv
        "MASK.OVERLAP_RING": 1,  # with VIT_TRAIN mask
        "TRAIN.SCOPE": "fusion_projector",  # without layers
        "DET.IMGSZ": 100,
        "CACHE.DISK_GIB": 1.0,  # without a folder
        "SEP.STYLE": "braces",
    })  # fmt: skip
    assert len(problems_of(cfg)) == 6


def test_without_a_split_other_keys_are_inert(make_settings) -> None:
    cfg = make_settings(**{
        "SPLIT": "none", "MASK.OVERLAP_RING": 2, "DET.BACKEND": "rtdetr", "CACHE.DISK_GIB": 1.0, "POSITION": "raster",
        "TRAIN.SCOPE": "fusion_projector",
    })  # fmt: skip
    assert problems_of(cfg) == []


def test_ring_is_allowed_where_groups_are_gathered_or_nothing_is_isolated(make_settings) -> None:
    assert problems_of(make_settings(**{"MASK.OVERLAP_RING": 1, "VIT_TRAIN": "gather"})) == []
    assert problems_of(make_settings(**{"MASK.OVERLAP_RING": 1, "SPLIT": "order_only", "CACHE.MODE": "none"})) == []


def test_run_without_backbone_or_evaluator_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    overrides = {"MODEL.BACKBONE.NAME": "", "TEST.EVALUATOR": "Classification"}
    found = problems_of(make_cfg(tiny_world, tmp_path / "run", "BgObjLLaVA", overrides))
    assert [problem.split()[0] for problem in found] == ["MODEL.BACKBONE.NAME", "TEST.EVALUATOR"]


def test_missing_libraries_are_named_with_the_remedy(make_settings, monkeypatch: pytest.MonkeyPatch) -> None:
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name in checks.LIBRARIES else find(name))
    assert problems_of(make_settings()) == ["BgObjLLaVA needs transformers and peft: pip install -e .[vlm]"]


def test_lafter_trains_without_transformers(tiny_world: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "sys.modules.update(dict.fromkeys(['transformers', 'peft', 'textblob', 'nltk']));"  # an import of any of them fails
        "import tiny_world, trainers; print(sorted(trainers.__all__));"
        "settings = {'OPTIM.MAX_EPOCH': 1, '.WARMUP_EPOCHS': 0, 'TEST.NO_TEST': True};"
        "cfg = tiny_world.make_cfg(Path(sys.argv[1]), Path(sys.argv[2]), 'LaFTer', settings);"
        "tiny_world.build(cfg).train()"
    )
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(dassl.__file__).parents[1])]  # whichever engine is at work here
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-c", code, str(tiny_world), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "'BgObjLLaVA', 'GatedBLIP2', 'HybridCascadeLaFTer', 'LaFTer'" in done.stdout
    assert (tmp_path / "run" / "adapt" / "model.pth.tar-1").is_file()

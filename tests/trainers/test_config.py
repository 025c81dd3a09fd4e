"""The keys of the trainers: each has a reader, a default that is allowed, and refuses what cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from tiny_world import make_cfg
from yacs.config import CfgNode

import trainers
from trainers import config, dataset_keys
from trainers.bgobj_llava import config as bgobj_llava_config
from trainers.config import CHOICES, RANGES, add_trainer_configs, problems_with_choices
from trainers.evaluators import label_distribution, vqa
from trainers.gated_blip2 import config as gated_blip2_config
from trainers.viecap import config as viecap_config

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for room in ("trainers", "datasets", "clip_ext")
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.name not in ("config.py", "dataset_keys.py")
)


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {f"{prefix}{key}": value}
    return found


def all_keys() -> dict[str, object]:
    cfg = get_cfg_default()
    before = set(leaves(cfg))
    add_trainer_configs(cfg)
    return {key: value for key, value in leaves(cfg).items() if key not in before}


def test_every_trainer_has_its_node_and_no_other_node_exists() -> None:
    nodes = {key.split(".")[1] for key in all_keys() if key.startswith("TRAINER.")}
    assert nodes == {name.upper() for name in trainers.__all__}


@pytest.mark.parametrize("key", sorted({key.rsplit(".", 1)[-1] for key in all_keys()}))
def test_every_key_is_read_by_code(key: str) -> None:
    read = re.search(rf"(\.{key}\b|\.get\(\"{key}\"|\[\"{key}\"\])", SOURCES)
    checked = key in CHOICES and len(CHOICES[key]) == 1  # a switch with one position so far: any other raises
    assert read or checked, f"{key} has no reader"


def test_every_key_is_declared_with_a_comment() -> None:
    modules = (config, bgobj_llava_config, gated_blip2_config, viecap_config, dataset_keys, label_distribution, vqa)
    sources = [Path(module.__file__).read_text("utf-8") for module in modules]
    lines = [line for source in sources for line in source.splitlines()]
    declared: dict[str, bool] = {}
    for line in lines:
        match = re.match(r"    node\.([A-Z_.]+) = (?!CfgNode|node)", line)
        if match:
            declared[match[1]] = declared.get(match[1], False) or "  # " in line
    assert [key for key, commented in declared.items() if not commented] == []
    assert {key.rsplit(".", 1)[-1] for key in all_keys()} == {key.rsplit(".", 1)[-1] for key in declared}


def test_every_read_of_a_node_names_a_declared_key() -> None:
    read = set(re.findall(r"\b(?:node|settings)\.([A-Z][A-Z0-9_]+)(?:\.([A-Z][A-Z0-9_]+))?\b", SOURCES))
    declared = {*all_keys(), *leaves(get_cfg_default())}
    known = {part for key in declared for part in key.split(".")}  # nodes and keys
    assert {key for pair in read for key in pair if key} - known == set()


def test_defaults_are_allowed() -> None:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    for name in trainers.__all__:
        assert problems_with_choices(cfg.TRAINER[name.upper()], name) == []


def test_every_choice_and_range_belongs_to_a_key() -> None:
    known = {key.split(".", 2)[-1] for key in all_keys() if key.startswith("TRAINER.")}
    assert set(CHOICES) | set(RANGES) <= known


def test_no_room_redefines_a_shared_choice_or_range() -> None:
    for room in (bgobj_llava_config, viecap_config):
        assert (set(CHOICES) | set(RANGES)) & (set(room.CHOICES) | set(room.RANGES)) == set()


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_word_outside_its_choices_is_refused_with_the_list(key: str, tiny_world: Path, tmp_path: Path) -> None:
    assert_refused(tiny_world, tmp_path, {f".{key}": "nonsense"}, rf"{key} is 'nonsense'; expected one of {CHOICES[key][0]}")


@pytest.mark.parametrize(("key", "value"), [
    ("LABEL_SMOOTHING", 1.0), ("CONF_THRESHOLD", 1.0), ("KEEP_SHARE", 0.0), ("SCALE_INIT", 0.5), ("PROMPT_TOKENS", -1),
    ("PROGRESSIVE_WARMUP", -1), ("PROGRESSIVE_EPOCHS", -1),
    ("WARMUP_EPOCHS", -1), ("ADAPTER_LR_MULT", 0.0), ("NGA_LR_MULT", 0.0), ("GRAD_ACCUM", 0), ("MAX_GRAD_NORM", -1.0),
    ("CACHE_SIDE", 0), ("CACHE_MAX_GB", 0.0), ("NGA_OFFSET", 2), ("NGA_SIGMA_MIN", 0.0), ("CONS_WEIGHT", -0.1),
    ("DEEP_SUPERVISION", -0.1), ("TEXT.EPOCHS", -1), ("TEXT.NOISE_STD", -0.1), ("EMA_DECAY", 0.0), ("EMA_DECAY", 1.0),
    ("DUAL.LAMBDA", -0.1), ("DUAL.LAMBDA", 1.1), ("DUAL.TEMPERATURE", 0.0), ("DUAL.SIGMA", 0.0), ("DUAL.EPSILON", -0.1),
])  # fmt: skip
def test_number_outside_its_range_is_refused(key: str, value: float, tiny_world: Path, tmp_path: Path) -> None:
    assert_refused(tiny_world, tmp_path, {f".{key}": value}, rf"{key} is {value!r}; expected a value")


def assert_refused(world: Path, tmp_path: Path, overrides: dict, message: str, name: str = "MultiLayerLaFTer") -> None:
    trainer = TRAINER_REGISTRY.get(name)
    with pytest.raises(ValueError, match=message):
        trainer.check_cfg(object.__new__(trainer), make_cfg(world, tmp_path / "run", name, overrides))


CONTRADICTIONS = {
    "few shots read labels": ({"DATASET.NUM_SHOTS": 4}, "DATASET.NUM_SHOTS is 4"),
    "best_val reads labels": ({"TEST.FINAL_MODEL": "best_val"}, "FINAL_MODEL is 'best_val'"),
    "votes read labels": ({".DUAL.ENABLED": True}, "DUAL.STRATEGY is 'json', which reads votes"),
    "second head without its task": ({".DUAL.HEADS": "dual"}, "DUAL.HEADS is 'dual', but the dual task is off"),
    "a name twice on the ring": ({".DUAL.RING": ["joy", "joy"]}, "DUAL.RING is .*; expected every class name once"),
    "synthetic votes without a ring": (
        {".DUAL.ENABLED": True, ".DUAL.STRATEGY": "strategy1"},
        "DUAL.STRATEGY is 'strategy1', but data set TinyColours has no emotion ring",
    ),
    "text phase of direct": ({".MODE": "direct", ".PHASE": "text_only"}, "PHASE is 'text_only', but .* has no text phase"),
    "texts of direct": ({".MODE": "direct", ".CLASSIFIER_INIT": "text_mean"}, "CLASSIFIER_INIT is 'text_mean', but"),
    "proxy with labels": ({".MODE": "supervised", ".SELECT": "proxy"}, "SELECT is 'proxy', which is for .*MODE pseudo"),
    "best of no epochs": (
        {".MODE": "supervised", ".PHASE": "text_only", "TEST.FINAL_MODEL": "best_val"},
        "TEST.FINAL_MODEL is 'best_val', but .*PHASE text_only has no epochs",
    ),
    "averaged teacher, one view": ({".TEACHER": "ema", ".AUGMENT": "none"}, "AUGMENT is 'none'; TEACHER ema labels weak views"),
    "online teacher, one view": ({".TEACHER": "shared", ".AUGMENT": "single_crop"}, "AUGMENT is 'single_crop'"),
    "online teacher, alignment": ({".TEACHER": "shared", ".DIST_ALIGN": "uniform"}, "DIST_ALIGN is 'uniform'"),
    "online teacher, share": ({".TEACHER": "shared", ".KEEP_SHARE": 0.5}, "KEEP_SHARE is 0.5"),
    "shares without numbers": ({".DIST_ALIGN": "shares"}, "CLASS_SHARES is empty"),
    "numbers without shares": ({".CLASS_SHARES": [1.0, 2.0]}, "CLASS_SHARES is set"),
    "endless warm-up": ({".WARMUP_EPOCHS": 2}, "WARMUP_EPOCHS is 2; expected fewer than OPTIM.MAX_EPOCH 2"),
    "unknown schedule": ({".SCHEDULER": "linear"}, "SCHEDULER is 'linear'"),
    "dassl counts epochs": ({".SCHEDULER": "dassl", ".SCHEDULER_STEP": "update"}, "SCHEDULER_STEP is 'update'"),
    "sigma below its bound": ({".NGA_SIGMA_INIT": 0.2}, "NGA_SIGMA_INIT is 0.2"),
    "plan of the other family": (
        {".STAGE_SCHEME": "keep_last"}, "STAGE_SCHEME is 'keep_last'; expected one of auto, even, shallow_deep",
    ),
    "flat stages": ({".STAGES": [1, 2, 3]}, r"STAGES is \[1, 2, 3\]; expected lists of block numbers"),
    "words as blocks": ({".STAGES": [["1", "2"]]}, r"STAGES is .*; expected lists of block numbers"),
    "unordered stages": ({".STAGES": [[1, 2], [2, 3]]}, "STAGES: .*block 2 comes after block 2"),
    "stages with a gap": ({".STAGES": [[1, 2], [4]]}, "STAGES: .*block 3 is in no stage"),
    "empty stages": ({".STAGES": [[], []]}, "STAGES: .*stage 1 is empty"),
    "unfreezing without room": (
        {".PROGRESSIVE": True, ".PROGRESSIVE_WARMUP": 1, ".PROGRESSIVE_EPOCHS": 1},
        r"PROGRESSIVE_WARMUP 1 \+ PROGRESSIVE_EPOCHS 1 epochs .* expected fewer than OPTIM.MAX_EPOCH 2",
    ),
    "stages without a loss": ({".FUSION": "last", ".CONS_WEIGHT": 0.0}, "FUSION is 'last' .* never reach the loss"),
    "mode of no prompts": ({".PROMPT_MODE": "deep", ".PROMPT_TOKENS": 0}, "PROMPT_MODE is 'deep', but PROMPT_TOKENS is 0"),
    "unknown recipe": ({".AUGMENT_RECIPE": "wild"}, "AUGMENT_RECIPE is 'wild'; expected one of standard"),
    "several views by Dassl": ({"DATALOADER.K_TRANSFORMS": 2}, "DATALOADER.K_TRANSFORMS is 2"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_is_refused(case: str, tiny_world: Path, tmp_path: Path) -> None:
    overrides, message = CONTRADICTIONS[case]
    assert_refused(tiny_world, tmp_path, overrides, message)


def test_five_faults_give_one_error_with_five_reports(tiny_world: Path, tmp_path: Path) -> None:
    overrides = {
        ".PREC": "fp8",
        ".LABEL_SMOOTHING": 2.0,
        ".SCHEDULER": "linear",
        "TEST.FINAL_MODEL": "best_val",
        ".NGA_SIGMA_INIT": 0.1,
    }
    trainer = TRAINER_REGISTRY.get("HybridCascadeLaFTer")
    with pytest.raises(ValueError) as caught:
        trainer.check_cfg(object.__new__(trainer), make_cfg(tiny_world, tmp_path / "run", "HybridCascadeLaFTer", overrides))
    assert str(caught.value).splitlines()[0] == "HybridCascadeLaFTer: 5 problem(s) in the config"
    assert len(str(caught.value).splitlines()) == 6


def test_what_label_free_runs_must_not_do_supervised_ones_may(tiny_world: Path, tmp_path: Path) -> None:
    trainer = TRAINER_REGISTRY.get("LaFTer")
    allowed = {
        ".MODE": "supervised",
        "DATASET.NUM_SHOTS": 4,
        "TEST.FINAL_MODEL": "best_val",
        ".DUAL.ENABLED": True,
        ".DUAL.HEADS": "dual",
        # A teacher's keys rest, whatever a preset says about them.
        ".TEACHER": "shared",
        ".AUGMENT": "none",
        ".DIST_ALIGN": "uniform",
    }
    trainer.check_cfg(object.__new__(trainer), make_cfg(tiny_world, tmp_path / "run", "LaFTer", allowed))
    direct = {".MODE": "direct", ".DUAL.HEADS": "dual"}  # direct switches the dual task on
    trainer.check_cfg(object.__new__(trainer), make_cfg(tiny_world, tmp_path / "run", "LaFTer", direct))


def test_text_only_needs_no_room_for_a_warm_up_or_unfreezing(tiny_world: Path, tmp_path: Path) -> None:
    trainer = TRAINER_REGISTRY.get("MultiLayerLaFTer")
    overrides = {".PHASE": "text_only", ".WARMUP_EPOCHS": 9, ".PROGRESSIVE": True}
    trainer.check_cfg(object.__new__(trainer), make_cfg(tiny_world, tmp_path / "run", "MultiLayerLaFTer", overrides))

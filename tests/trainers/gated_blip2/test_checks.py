"""GatedBLIP2's config: defaults are allowed, and everything that cannot work is said at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dassl.engine import TRAINER_REGISTRY
from tiny_world import make_cfg
from yacs.config import CfgNode

from trainers.config_merge import flatten
from trainers.gated_blip2 import checks
from trainers.gated_blip2.config import CHOICES, CONTROLS, RANGES

NAME = "GatedBLIP2"
NODE = "TRAINER.GATEDBLIP2"

Check = Callable[[dict[str, Any]], list[str]]


@pytest.fixture
def problems_of(tiny_world: Path, tmp_path: Path) -> Check:
    """Return `problems_of(overrides)`: what `check_cfg` says, without its headline."""

    def check(overrides: dict[str, Any]) -> list[str]:
        trainer = TRAINER_REGISTRY.get(NAME)
        try:
            trainer.check_cfg(object.__new__(trainer), make_cfg(tiny_world, tmp_path / "run", NAME, overrides))
        except ValueError as error:
            return str(error).splitlines()[1:]
        return []

    return check


def leaves(node: CfgNode) -> set[str]:
    return {key for key, _ in flatten(node)}


def test_defaults_work(problems_of: Check) -> None:
    assert problems_of({}) == []


def test_choices_and_ranges_belong_to_keys(tiny_world: Path, tmp_path: Path) -> None:
    assert set(CHOICES) | set(RANGES) <= leaves(make_cfg(tiny_world, tmp_path / "run", NAME).TRAINER.GATEDBLIP2)


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_word_outside_its_choices_is_refused_once_with_the_list(key: str, problems_of: Check) -> None:
    (problem,) = problems_of({f".{key}": "nonsense"})
    assert problem == f"{NODE}.{key} is 'nonsense'; expected one of {', '.join(CHOICES[key])}"


WRONG = {
    "GATE.HIDDEN": 0, "GATE.INIT_STD": -0.1, "STYLE.DROPOUT": 1.0, "PROMPT.MAX_QUESTION_TOKENS": 0, "CACHE.SHARD_IMAGES": 0,
    "GEN.NUM_BEAMS": 0, "GEN.MAX_NEW_TOKENS": 0, "EVAL.VAL_LIMIT": 0, "GRAD_ACCUM": 0, "MAX_GRAD_NORM": -1.0,
    "WARMUP_RATIO": 1.0, "SAVE_LATEST_PER_EPOCH": -1, "SCHEDULER": "linear", "SCHEDULER_STEP": "batch", "PREC": "fp8",
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_impossible_value_is_refused_by_key(key: str, problems_of: Check) -> None:
    (problem,) = problems_of({f".{key}": WRONG[key]})
    assert problem.startswith(f"{NODE}.{key} is {WRONG[key]!r}; expected")


def test_every_key_with_a_range_is_tried() -> None:
    assert set(RANGES) <= set(WRONG)


UNGATED = {".PRESET": "projection"}
CONTRADICTIONS = {
    "no model": ({"MODEL.BACKBONE.NAME": ""}, "MODEL.BACKBONE.NAME .* is empty; expected tiny_blip2"),
    "another evaluator": ({"TEST.EVALUATOR": "Classification"}, "TEST.EVALUATOR is 'Classification'.*expected VQA"),
    "size that is no square": ({"INPUT.SIZE": (224, 448)}, r"INPUT.SIZE is \(224, 448\); expected a square"),
    "random views": ({"INPUT.TRANSFORMS": ("random_flip",)}, "INPUT.TRANSFORMS has random_flip"),
    "random views without a cache": ({"INPUT.TRANSFORMS": ("random_flip",), ".CACHE.ENABLE": False}, "INPUT.TRANSFORMS has"),
    "dassl's schedule per update": ({".SCHEDULER": "dassl"}, "SCHEDULER_STEP is 'update', but"),
    "last epoch for the best": (
        {".CHECKPOINT.KEEP": "last", "TEST.FINAL_MODEL": "best_val"}, "KEEP is 'last', but TEST.FINAL_MODEL is 'best_val'"
    ),
    "template without a question": ({".PROMPT.TEMPLATE": "Answer:"}, r"PROMPT.TEMPLATE is 'Answer:', which holds .* 0 times"),
    "unknown control": ({".EVAL.CONTROLS": ("majority", "luck")}, f"EVAL.CONTROLS .* different ones of {', '.join(CONTROLS)}"),
    "control named twice": ({".EVAL.CONTROLS": ("majority", "majority")}, "expected different ones of"),
    "penalty without beams": ({".GEN.LENGTH_PENALTY": 0.5}, "LENGTH_PENALTY is 0.5, .*NUM_BEAMS is 1"),
    "layer 0": ({".GATE.LAYERS": (0, 1)}, r"GATE.LAYERS is \(0, 1\); expected different layers of the Q-Former from 1"),
    "layer named twice": ({".GATE.LAYERS": (1, 1)}, r"GATE.LAYERS is \(1, 1\)"),
    "gates nowhere": ({".GATE.SITES": "none"}, "GATE.SITES is 'none', but .*PRESET gates_proj trains gates"),
    "no style encoder": ({".STYLE.FALLBACK": "none"}, "STYLE.CHECKPOINT is empty"),
    "style encoder that is not there": (
        {".STYLE.FALLBACK": "none", ".STYLE.CHECKPOINT": "nowhere/best.pt"}, "STYLE.CHECKPOINT is 'nowhere/best.pt'"
    ),
    "no classes file": ({".STYLE.CLASSES_FILE": "nowhere.json"}, "STYLE.CLASSES_FILE is 'nowhere.json'"),
    "shuffling one sample": ({".STYLE.SOURCE": "shuffled", "DATALOADER.TRAIN_X.BATCH_SIZE": 1}, "SOURCE is 'shuffled'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_is_refused_with_one_message(case: str, problems_of: Check) -> None:
    overrides, words = CONTRADICTIONS[case]
    (problem,) = problems_of(overrides)
    assert re.search(words, problem), problem


@pytest.mark.parametrize("case", ["layer 0", "gates nowhere", "no style encoder", "shuffling one sample"])
def test_keys_of_gates_are_inert_without_gates(case: str, problems_of: Check) -> None:
    assert problems_of(CONTRADICTIONS[case][0] | UNGATED) == []


def test_original_presets_read_no_sites(problems_of: Check) -> None:
    assert problems_of({".GATE.SITES": "none", ".PRESET": "original"}) == []


def test_quantisation_needs_a_gpu_and_its_library(problems_of: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    problems = problems_of({".QUANT": "nf4"})
    assert [problem.split("; ")[0] for problem in problems] == [
        f"{NODE}.QUANT is 'nf4', which needs a GPU",
        f"{NODE}.QUANT is 'nf4', but bitsandbytes is not installed: pip install -e .[quant]",
    ]


def test_five_faults_are_five_messages(problems_of: Check) -> None:
    faults = {
        ".PRESET": "all", ".PREC": "fp16", ".EVAL.CONTROLS": ("luck",), ".PROMPT.TEMPLATE": "?", "MODEL.BACKBONE.NAME": ""
    }  # fmt: skip
    problems = problems_of(faults)
    assert len(problems) == 5 and len({problem.split(" is ")[0] for problem in problems}) == 5

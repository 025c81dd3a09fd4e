"""What `check_cfg` refuses: every problem at once, with the values, what is allowed and the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_world import make_cfg
from yacs.config import CfgNode

from trainers.viecap import checks
from trainers.viecap.trainer import ViECap

Check = Callable[[dict[str, Any]], list[str]]


@pytest.fixture
def check(tiny_world: Path, tmp_path: Path) -> Check:
    """Return `check(overrides) -> messages` of the trainer's own checks."""

    def problems(overrides: dict[str, Any]) -> list[str]:
        return checks.find_problems(make_cfg(tiny_world, tmp_path / "run", "ViECap", overrides))

    return problems


def refuse(cfg: CfgNode) -> str:
    with pytest.raises(ValueError) as caught:
        ViECap.check_cfg(object.__new__(ViECap), cfg)  # Dassl calls it before the instance has attributes
    return str(caught.value)


def test_the_tiny_world_is_accepted(check: Check) -> None:
    assert check({}) == []


def test_six_faults_are_reported_together(tiny_world: Path, tmp_path: Path) -> None:
    faults = {
        ".ONLY_HARD_PROMPT": True,
        ".FROZEN_GPT": True,
        ".LM_INIT": "random",
        ".PROB_OF_RANDOM_MASK": 1.5,
        ".NAME_OF_ENTITIES_TEXT": "vinvl_vgoi_entities",
        ".EVAL.VAL_EVERY": 2,
        "TEST.FINAL_MODEL": "best_val",
        ".NUM_RETURN": 7,
        ".DECODE": "beam",
    }
    text = refuse(make_cfg(tiny_world, tmp_path / "run", "ViECap", faults))
    first, *lines = text.splitlines()
    assert first == "ViECap: 6 problem(s) in the config" and len(lines) == 6
    for word in ("nothing trains", "never learns", "PROB_OF_RANDOM_MASK is 1.5", "PATH_OF_ENTITIES_TEXT is empty", "VAL_EVERY",
                 "NUM_RETURN is 7, more than TRAINER.VIECAP.BEAM_WIDTH 5"):  # fmt: skip
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize(("overrides", "words"), [
    ({".ONLY_HARD_PROMPT": True, ".USING_HARD_PROMPT": False}, ["no prompt at all"]),
    ({".NAME_OF_OBJECTS_VOCABS": "corpsu"}, ["'corpsu' (did you mean corpus?)", "none"]),
    ({".NAME_OF_ENTITIES_TEXT": "coco_entity"}, ["did you mean coco_entities?"]),
    ({".NAME_OF_ENTITIES_TEXT": "none"}, ["NAME_OF_ENTITIES_TEXT is 'none'"]),
    ({".ENTITY_EXTRACTOR": "vocabulary"}, ["ENTITY_EXTRACTOR is 'vocabulary'", "'corpus'"]),
    ({".EVAL.JAVA": ["meteor", "bleurt"]}, ["'bleurt'; expected some of meteor, spice"]),
    ({".PREFIX": "runs/coco"}, ["PREFIX is 'runs/coco'"]),
    ({".DECODE": "greedy", ".NUM_RETURN": 2}, ["DECODE greedy knows one caption"]),
    ({"TEST.EVALUATOR": "VQA"}, ["TEST.EVALUATOR is 'VQA'", "expected Captioning"]),
    ({"OPTIM.NAME": "sgd"}, ["OPTIM.NAME is 'sgd'", "ADAM_EPS"]),
    ({"MODEL.BACKBONE.NAME": ""}, ["MODEL.BACKBONE.NAME (--backbone) is empty"]),
    ({".LANGUAGE_MODEL": ""}, ["LANGUAGE_MODEL is empty"]),
    ({".THRESHOLD": 2.0}, ["THRESHOLD is 2.0; expected a value in [0, 1]"]),
    ({".LOADER.PLACEMENT": "gpu"}, ["LOADER.PLACEMENT is 'gpu'; expected one of auto, device, host"]),
])  # fmt: skip
def test_a_fault_is_named_with_value_and_remedy(overrides: dict[str, Any], words: list[str], check: Check) -> None:
    (problem,) = check(overrides)
    assert [word for word in words if word not in problem] == []


def test_vocabularies_are_not_asked_for_without_a_hard_prompt(check: Check) -> None:
    assert check({".USING_HARD_PROMPT": False, ".NAME_OF_ENTITIES_TEXT": "vinvl_vgoi_entities"}) == []


@pytest.mark.parametrize("extractor", ["textblob", "nltk"])
def test_missing_libraries_are_named_with_the_remedy(extractor: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert check({".ENTITY_EXTRACTOR": extractor}) == [f"ViECap needs transformers and {extractor}: pip install -e .[vlm]"]
    assert check({".ENTITY_EXTRACTOR": "given"}) == ["ViECap needs transformers: pip install -e .[vlm]"]

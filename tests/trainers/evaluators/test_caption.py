"""The evaluator of captions: what it returns, logs and writes, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from yacs.config import CfgNode

from trainers.config import add_trainer_configs
from trainers.evaluators import caption, java_metrics
from trainers.evaluators.caption_rows import CaptionRow, read_rows, score_rows

# (caption, references, image, domain)
PICTURES = [
    ("A dog runs on grass.", ["A dog runs on the grass.", "A brown dog is running on grass."], "17", "near_domain"),
    ("Two people on bikes.", ["Two people ride bikes."], "18", "in_domain"),
    ("A red bus on the road.", ["A red bus on the road.", "A bus."], "19", "near_domain"),
    ("Nothing here.", ["A cat sleeps on a sofa."], "20", "out_domain"),
]
ROWS = [CaptionRow(image, text, tuple(references), domain) for text, references, image, domain in PICTURES]


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    run = ["OUTPUT_DIR", str(tmp_path / "run"), "TRAINER.NAME", "ViECap", "TEST.EVALUATOR", "Captioning"]
    cfg.merge_from_list([*run, "DATASET.NAME", "NoCaps"])
    return cfg


def targets(pictures: list[tuple], **further: Any) -> dict[str, list]:
    _, captions, images, domains = zip(*pictures, strict=True)
    return {"image_id": list(images), "captions": list(captions), "domain": list(domains), **further}


def evaluator_of(cfg: CfgNode, pictures: list[tuple] = PICTURES, size: int = 3, **further: Any) -> Any:
    evaluator = build_evaluator(cfg, lab2cname={0: "caption"})
    for first in range(0, len(pictures), size):
        part = pictures[first : first + size]
        evaluator.process([text for text, *_ in part], targets(part, **further))
    return evaluator


def files_of(cfg: CfgNode) -> dict[str, list[CaptionRow]]:
    return {path.name: read_rows(path) for path in sorted((Path(cfg.OUTPUT_DIR) / "predictions").iterdir())}


# --- results ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4])
def test_results_are_those_of_all_rows_cider_first(cfg: CfgNode, size: int) -> None:
    results = evaluator_of(cfg, size=size).evaluate()
    assert list(results.items()) == list(score_rows(ROWS).items())
    assert next(iter(results)) == "CIDEr" and {"in_domain/CIDEr", "out_domain/ROUGE-L"} < set(results)
    assert all(type(value) is float for value in results.values())


def test_reset_forgets(cfg: CfgNode) -> None:
    evaluator = evaluator_of(cfg)
    evaluator.reset()
    with pytest.raises(ValueError, match="No picture was captioned"):
        evaluator.evaluate()
    evaluator.process([PICTURES[0][0]], targets(PICTURES[:1]))
    assert evaluator.evaluate() == score_rows(ROWS[:1])


def test_lines_are_those_that_scripts_read(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=caption.__name__):
        results = evaluator_of(cfg).evaluate()
    lines = caplog.text.splitlines()
    assert {f"* {name}: {value:.1f}%" for name, value in results.items()} < set(lines) and "near_domain/BLEU-4" in results
    assert "* total: 4" in lines and any(line.endswith("=> result") for line in lines)
    assert "document frequencies of its own" in caplog.text and "EvalAI" in caplog.text
    assert [float(figure) for figure in re.findall(r"^\* CIDEr: ([\d.]+)%$", caplog.text, re.M)] == [round(results["CIDEr"], 1)]


def test_reservations_about_nocaps_are_made_for_nocaps_alone(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    cfg.DATASET.NAME = "CocoCaption"
    with caplog.at_level(logging.INFO, logger=caption.__name__):
        evaluator_of(cfg, PICTURES[::2]).evaluate()
    assert "EvalAI" not in caplog.text and "frequencies" not in caplog.text and "near_domain/" not in caplog.text


# --- files -----------------------------------------------------------------------------------------------------------------


def test_nocaps_has_a_file_of_all_and_one_per_domain(cfg: CfgNode) -> None:
    evaluator_of(cfg).evaluate()
    assert files_of(cfg) == {
        "overall_generated_captions.json": ROWS,
        "indomain_generated_captions.json": ROWS[1:2],
        "neardomain_generated_captions.json": ROWS[::2],
        "outdomain_generated_captions.json": ROWS[3:],
    }


@pytest.mark.parametrize(
    ("dataset", "prefix"),
    [
        ("CocoCaption", "coco"), ("Flickr30kCaption", "flickr30k"), ("MiniScenes", "mini_scenes"),
        ("CaptionFiles", "caption_files"), ("FlickrStyle10K", "flickr_style10k"), ("Foo", "foo"),
    ],
)  # fmt: skip
def test_other_data_sets_have_one_file_of_their_name_with_split_valid(cfg: CfgNode, dataset: str, prefix: str) -> None:
    cfg.DATASET.NAME = dataset
    evaluator_of(cfg, [(*picture[:3], "test") for picture in PICTURES]).evaluate()
    (path,) = (Path(cfg.OUTPUT_DIR) / "predictions").iterdir()
    assert path.name == f"{prefix}_generated_captions.json"
    assert {row["split"] for row in json.loads(path.read_text("utf-8"))} == {"valid"}


def test_validation_leaves_the_file_of_the_test_alone(cfg: CfgNode) -> None:
    cfg.DATASET.NAME = "CocoCaption"
    evaluator_of(cfg, PICTURES[:2], split=["test", "test"]).evaluate()
    evaluator_of(cfg, PICTURES[2:], split=["val", "val"]).evaluate()
    assert files_of(cfg) == {"coco_generated_captions.json": ROWS[:2], "val_coco_generated_captions.json": ROWS[2:]}


# --- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "changes", "message"),
    [
        (["a", "b"], {"image_id": None, "domain": None}, "no 'image_id'; the targets have no 'domain'"),
        (["a"], {}, "1 captions came with 2 'image_id'"),
        (["a", "b"], {"captions": ["text", ["x"]]}, "'captions' of 17 are text; expected a list of references"),
        (["a", "b"], {"captions": [["x"], []]}, r"1 picture\(s\) of DATASET.NAME have no reference caption \(18\).*predict.py"),
        ([1, 2], {}, "reads captions"),
    ],
)
def test_what_cannot_be_compared_is_refused(cfg: CfgNode, predictions: list, changes: dict, message: str) -> None:
    batch = {name: value for name, value in {**targets(PICTURES[:2]), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        build_evaluator(cfg).process(predictions, batch)


def test_scores_of_classes_are_no_captions(cfg: CfgNode) -> None:
    import torch

    with pytest.raises(ValueError, match="TEST.EVALUATOR Captioning reads captions"):
        build_evaluator(cfg).process(torch.zeros(2, 3), torch.zeros(2))


# --- Java ------------------------------------------------------------------------------------------------------------------


def test_java_metric_that_cannot_run_stops_before_anything_is_captioned(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg.TRAINER.VIECAP.EVAL.JAVA = ("meteor",)
    monkeypatch.setattr(java_metrics, "_package", lambda: None)
    with pytest.raises(ValueError, match=r"TRAINER.VIECAP.EVAL.JAVA meteor needs the package pycocoevalcap"):
        build_evaluator(cfg)
    assert any("pycocoevalcap" in problem for problem in caption.find_problems(cfg))


def test_java_metrics_are_measured_beside_the_others(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics, "find_problems", lambda names, key: [])
    monkeypatch.setattr(java_metrics, "score", lambda name, references, candidates, groups: [0.25] * len(groups))
    cfg.TRAINER.VIECAP.EVAL.JAVA = ("meteor",)
    results = evaluator_of(cfg).evaluate()
    assert results["METEOR"] == results["out_domain/METEOR"] == 25.0 and next(iter(results)) == "CIDEr"
    cfg.TRAINER.VIECAP.EVAL.JAVA = ()
    assert "METEOR" not in evaluator_of(cfg).evaluate()


def test_captions_are_kept_if_a_java_tool_fails(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> list[float]:
        raise RuntimeError("METEOR gave no result")

    monkeypatch.setattr(java_metrics, "find_problems", lambda names, key: [])
    monkeypatch.setattr(java_metrics, "score", fail)
    cfg.TRAINER.VIECAP.EVAL.JAVA = ("meteor",)
    with pytest.raises(RuntimeError, match="METEOR"):
        evaluator_of(cfg).evaluate()
    assert files_of(cfg)["overall_generated_captions.json"] == ROWS


def test_java_metrics_with_another_evaluator_are_without_effect_and_told(cfg: CfgNode) -> None:
    cfg.TEST.EVALUATOR = "Classification"
    assert caption.find_problems(cfg) == []
    cfg.TRAINER.VIECAP.EVAL.JAVA = ("meteor",)
    (problem,) = caption.find_problems(cfg)
    assert "TEST.EVALUATOR is 'Classification'; expected Captioning" in problem


@pytest.mark.parametrize("name", ["BgObjLLaVA", "LaFTer", "SomebodysOwn"])
def test_trainers_without_the_key_ask_for_no_java(cfg: CfgNode, name: str) -> None:
    cfg.TRAINER.NAME = name
    assert caption.find_problems(cfg) == [] and evaluator_of(cfg).evaluate()

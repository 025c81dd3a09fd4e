"""The evaluator of short answers: what it returns, logs and writes, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from yacs.config import CfgNode

from trainers.config import add_trainer_configs
from trainers.evaluators.vqa import PER_GROUP, PRIMARIES, find_problems

# (answer, references, type, truncated): the second is right for two of ten people, the fourth is half a match.
QUESTIONS = [
    ("The Dog.", ["dog"], "object", False),
    ("two", ["2"] * 2 + ["3"] * 8, "count", False),
    ("Yes, two", ["no"], "yes/no", False),
    ("night", ["starry night"], "object", True),
    ("yes", ["yes"], "yes/no", False),
    ("105", ["100"], "count", False),
]
GOLDEN = {
    "accuracy": 100 * 3 / 6,
    "vqa_accuracy": 100 * (1 + 0.6 + 0 + 0 + 1 + 0) / 6,
    "token_f1": 100 * (1 + 1 + 0 + 2 / 3 + 1 + 0) / 6,
    "bleu": 100 * (math.sqrt(1 / 2 * 1 / 2) + 0 + 0 + math.exp(1 - 2) + 1 + 0) / 6,  # words as they are written: `the dog`
    "rouge_l": 100 * (2.44 * 0.5 / (1 + 1.44 * 0.5) + 0 + 0 + 2.44 * 0.5 / (0.5 + 1.44) + 1 + 0) / 6,
    "macro_accuracy": 100 * (1 / 2 + 1 / 2 + 1 / 2) / 3,
    "anls": 100 * (0 + 0 + 0 + 0 + 1 + 2 / 3) / 6,
    "relaxed": 100 * (1 + 1 + 0 + 0 + 1 + 1) / 6,
    "yes_no_f1": 100 * 2 / 3,
    "truncated": 100 / 6,
}


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "run"), "TEST.EVALUATOR", "VQA"])
    return cfg


def output(answer: str, truncated: bool = False, **fields: Any) -> dict[str, Any]:
    return {"answer": answer, "truncated": truncated, **fields}


def target(references: list[str], kind: str = "object", **fields: Any) -> dict[str, Any]:
    return {"question": "What?", "answers": references, "question_type": kind, "impath": "images/a.png", **fields}


def results_of(cfg: CfgNode, questions: list[tuple] = QUESTIONS, size: int = 4, primary: str = "accuracy") -> dict[str, float]:
    cfg.TEST.VQA.PRIMARY = primary
    evaluator = build_evaluator(cfg, lab2cname={0: "vqa"})
    evaluator.reset()
    for first in range(0, len(questions), size):
        rows = questions[first : first + size]
        evaluator.process([output(row[0], row[3]) for row in rows], [target(row[1], row[2]) for row in rows])
    return evaluator.evaluate()


def rows_of(cfg: CfgNode) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "predictions.jsonl").read_text("utf-8").splitlines()]


# --- figures ------------------------------------------------------------------------------------------------------------


def test_metrics_have_the_stated_values_in_percent_accuracy_first(cfg: CfgNode) -> None:
    results = results_of(cfg)
    assert {name: results[name] for name in GOLDEN} == pytest.approx(GOLDEN)
    assert next(iter(results)) == "accuracy"
    assert all(type(value) is float for value in results.values())


def test_every_type_has_its_own_figures(cfg: CfgNode) -> None:
    results = results_of(cfg)
    kinds = {"object": QUESTIONS[0::3], "count": QUESTIONS[1::4], "yes/no": QUESTIONS[2::2]}
    for kind, rows in kinds.items():
        alone = results_of(cfg, rows)
        for name in PER_GROUP:
            assert results[f"{name}/{kind}"] == pytest.approx(alone[name])
    assert {name for name in results if "/" in name.partition("/")[0] or name.count("/")} == {
        f"{name}/{kind}" for name in PER_GROUP for kind in kinds
    }


def test_one_type_needs_no_figures_of_its_own(cfg: CfgNode) -> None:
    results = results_of(cfg, QUESTIONS[0::3])
    assert not any("/" in name for name in results) and results["macro_accuracy"] == results["accuracy"]


def test_blank_type_is_vqa(cfg: CfgNode) -> None:
    results = results_of(cfg, [("x", ["x"], "", False), ("x", ["y"], "object", False)])
    assert results["accuracy/vqa"] == 100.0 and rows_of(cfg)[0]["question_type"] == "vqa"


def in_styles(cfg: CfgNode, *rows: tuple[str, str, str]) -> dict[str, float]:
    """Evaluate (answer, reference, style) triples."""
    evaluator = build_evaluator(cfg)
    evaluator.process([output(answer) for answer, *_ in rows], [target([text], style=style) for _, text, style in rows])
    return evaluator.evaluate()


def test_every_known_style_has_its_own_figures(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = [("x", "x", "Baroque"), ("x", "y", "Baroque"), ("night", "starry night", "Pop_Art"), ("x", "x", "")]
    results = in_styles(cfg, *rows)
    assert {name for name in results if "/" in name} == {
        f"{name}/style={style}" for name in PER_GROUP for style in ("Baroque", "Pop_Art")
    }
    assert (results["accuracy"], results["accuracy/style=Baroque"], results["accuracy/style=Pop_Art"]) == (50.0, 50.0, 0.0)
    assert results["token_f1/style=Pop_Art"] == pytest.approx(200 / 3)
    assert next(iter(results)) == "accuracy" and "macro_accuracy" in results
    assert "* accuracy/style=Pop_Art: 0.0%" in caplog.text and "bleu/style" not in caplog.text  # as there are many styles
    cfg.TEST.VQA.PRIMARY = "bleu"
    in_styles(cfg, *rows)
    assert "* bleu/style=Baroque: 50.0%" in caplog.text


@pytest.mark.parametrize("styles", [("", ""), ("Baroque", "Baroque"), ("Baroque", "")])
def test_fewer_than_two_known_styles_need_no_figures(cfg: CfgNode, styles: tuple[str, str]) -> None:
    results = in_styles(cfg, ("x", "x", styles[0]), ("x", "y", styles[1]))
    assert not any("/" in name for name in results)


@pytest.mark.parametrize(
    ("answer", "references", "bleu", "rouge"),
    [
        ("Dutch", ["dutch"], 1.0, 1.0),
        ("oil on canvas", ["Oil on canvas."], 1.0, 1.0),
        ("night", ["starry night"], math.exp(1 - 2), 2.44 * 0.5 / (0.5 + 1.44)),
        ("oil on wood", ["oil on canvas"], (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3), 2 / 3),
        ("italian", ["dutch"], 0.0, 0.0),
        ("", ["dutch"], 0.0, 0.0),
        ("!", ["!"], 0.0, 0.0),  # no word
    ],
)
def test_bleu_and_rouge_have_the_references_as_references(
    cfg: CfgNode, answer: str, references: list[str], bleu: float, rouge: float
) -> None:
    results = results_of(cfg, [(answer, references, "", False)])
    assert (results["bleu"], results["rouge_l"]) == pytest.approx((100 * bleu, 100 * rouge))
    (row,) = rows_of(cfg)
    assert (row["scores"]["bleu"], row["scores"]["rouge_l"]) == pytest.approx((bleu, rouge))


def test_order_of_answer_and_reference_matters_to_bleu(cfg: CfgNode) -> None:
    short, long = "starry night", "the starry night over the rhone"
    too_short, too_long = (results_of(cfg, [row])["bleu"] for row in ((short, [long], "", False), (long, [short], "", False)))
    assert too_short == pytest.approx(100 * math.exp(1 - 6 / 2))
    assert too_long == pytest.approx(100 * (2 / 6 * 1 / 5 * 1 / 2 / 4 * 1 / 4 / 3) ** (1 / 4))


def test_macro_accuracy_weighs_types_alike(cfg: CfgNode) -> None:
    results = results_of(cfg, [("x", ["x"], "many", False)] * 3 + [("x", ["y"], "few", False)])
    assert (results["accuracy"], results["macro_accuracy"]) == (75.0, 50.0)


def test_yes_no_f1_counts_questions_that_most_answer_with_yes_or_no(cfg: CfgNode) -> None:
    said = [("yes", ["yes"]), ("no", ["yes"]), ("yes", ["no"]), ("perhaps", ["yes"]), ("no", ["no"]), ("yes", ["dog"]),
            ("yes", ["yes"] * 6 + ["no"] * 4), ("yes", ["yes", "no", "dog"])]  # fmt: skip
    results = results_of(cfg, [(answer, references, "", False) for answer, references in said])
    assert results["yes_no_f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 2))  # two hits, one false, two missed
    assert "yes_no_f1" not in results_of(cfg, [("no", ["no"], "", False)])


@pytest.mark.parametrize("size", [1, 2, 6])
def test_batches_of_any_size_give_the_same_and_reset_forgets(cfg: CfgNode, size: int) -> None:
    assert results_of(cfg, size=size) == results_of(cfg)
    evaluator = build_evaluator(cfg)
    evaluator.process([output("x")], [target(["y"])])
    evaluator.reset()
    evaluator.process([output("x")], [target(["x"])])
    assert evaluator.evaluate()["accuracy"] == 100.0 and len(rows_of(cfg)) == 1


# --- which entry comes first ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("primary", sorted(set(PRIMARIES) - {"auto"}))
def test_primary_names_the_entry_that_comes_first_and_changes_nothing_else(cfg: CfgNode, primary: str) -> None:
    results, usual = results_of(cfg, primary=primary), results_of(cfg)
    assert next(iter(results)) == primary
    assert dict(results) == dict(usual)
    assert [name for name in results if name != primary] == [name for name in usual if name != primary]


@pytest.mark.parametrize(
    ("dataset", "references", "first"),
    [
        ("OCRVQA", ["x", "x"], "accuracy"), ("TextVQA", ["x"], "vqa_accuracy"), ("VQAJson", ["x", "x"], "vqa_accuracy"),
        ("VQAJson", ["x"], "accuracy"), ("ArtQuest", ["x", "x"], "accuracy"), ("AQUA", ["x", "x"], "accuracy"),
        ("MiniScenes", ["x"], "accuracy"),
    ],
)  # fmt: skip
def test_auto_is_the_official_metric_of_the_data_set(cfg: CfgNode, dataset: str, references: list[str], first: str) -> None:
    cfg.DATASET.NAME = dataset
    assert next(iter(results_of(cfg, [("x", references, "", False)], primary="auto"))) == first


def test_primary_that_nothing_can_be_measured_by_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="TEST.VQA.PRIMARY is 'yes_no_f1', but no reference says yes"):
        results_of(cfg, QUESTIONS[:2], primary="yes_no_f1")


def test_impossible_settings_are_reported(cfg: CfgNode) -> None:
    assert find_problems(cfg) == []
    cfg.TEST.VQA.PRIMARY = "cider"
    assert find_problems(cfg) == [f"TEST.VQA.PRIMARY is 'cider'; expected one of {', '.join(PRIMARIES)}"]
    with pytest.raises(ValueError, match="TEST.VQA.PRIMARY is 'cider'"):
        build_evaluator(cfg)
    cfg.TEST.VQA.PRIMARY, cfg.TEST.EVALUATOR = "anls", "Classification"
    assert find_problems(cfg) == ["TEST.VQA.PRIMARY is 'anls', but TEST.EVALUATOR is 'Classification'; expected VQA"]


# --- log and file -------------------------------------------------------------------------------------------------------


def test_log_has_the_engines_block_with_one_accuracy_line(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    results_of(cfg, primary="vqa_accuracy")
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.splitlines()[:5] == ["=> result", "* total: 6", "* correct: 3", "* accuracy: 50.0%", "* error: 50.0%"]
    assert re.findall(r"\* accuracy: ([\.\deE+-]+)%", text) == ["50.0"]  # what readers of CoOp's logs look for
    assert "* vqa_accuracy: 43.3%" in text and "* accuracy/count: 50.0%" in text and "* truncated: 16.7%" in text


def test_file_holds_every_field_of_output_and_target(cfg: CfgNode) -> None:
    evaluator = build_evaluator(cfg)
    trace = {"hit": True, "seconds": {"vit": np.float32(0.5)}, "boxes": torch.tensor([[1, 2]]), "path": Path("x")}
    evaluator.process(
        [output("dög", n_bg=7, trace=trace), {"answer": "x"}],
        [target(["dog", " "], style="woodcut", question_id="q1"), target(["x"], question_id="q2")],
    )
    evaluator.evaluate()
    first, second = rows_of(cfg)
    assert first["trace"] == {"hit": True, "seconds": {"vit": 0.5}, "boxes": [[1, 2]], "path": "x"}
    expected = {"answer": "dög", "question": "What?", "impath": "images/a.png", "question_id": "q1", "n_bg": 7}
    expected["style"] = "woodcut"
    assert expected.items() <= first.items() and first["answers"] == ["dog", " "]
    assert first["scores"]["accuracy"] == 0.0 and first["scores"]["anls"] == pytest.approx(2 / 3)
    assert (second["scores"]["accuracy"], second["truncated"]) == (1.0, False)


def test_file_is_replaced_whole(cfg: CfgNode) -> None:
    results_of(cfg)
    results_of(cfg, QUESTIONS[:2])
    assert len(rows_of(cfg)) == 2 and [path.name for path in Path(cfg.OUTPUT_DIR).iterdir()] == ["predictions.jsonl"]


# --- what is missing ----------------------------------------------------------------------------------------------------


def test_questions_without_references_are_written_but_not_scored(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    results = results_of(cfg, [("x", ["x"], "object", False), ("y", [], "object", True), ("z", ["", " "], "object", False)])
    assert results["accuracy"] == 100.0 and results["truncated"] == pytest.approx(100 / 3)
    assert "* total: 1 (2 more without reference answer)" in caplog.text
    assert [row["scores"] for row in rows_of(cfg)][1:] == [{}, {}]


def test_unlabelled_part_is_answered_and_nothing_is_claimed(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    results = results_of(cfg, [("x", [], "object", False), ("y", [], "object", False)], primary="anls")
    assert dict(results) == {"truncated": 0.0}
    assert "No question has a reference answer" in caplog.text and "accuracy" not in caplog.text
    assert [row["answer"] for row in rows_of(cfg)] == ["x", "y"]


def test_empty_split_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="No question was answered; check TEST.SPLIT and DATASET.NAME"):
        build_evaluator(cfg).evaluate()


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ([output("x")], [], "1 outputs for 0 targets"),
        ([{}], [target(["x"])], "an output has no 'answer'"),
        ([output("x")], [{"question": "Q"}], "no 'answers'; a target has no 'question_type'; a target has no 'impath'"),
        ([output("x")], [target("dog")], "'answers' are text; expected a list"),
        ([output("x", style="cubism")], [target(["x"], style="woodcut")], "both have 'style', and differ"),
        (torch.zeros(2, 3), torch.zeros(2), "reads answers .*not scores of classes"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(cfg: CfgNode, outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_evaluator(cfg).process(outputs, targets)

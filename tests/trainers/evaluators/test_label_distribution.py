"""The evaluator of label distributions: what it prints, returns and writes, and under which conditions."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator
from torch import Tensor
from yacs.config import CfgNode

from trainers.base import FactTensor, Target
from trainers.config import add_trainer_configs
from trainers.evaluators.label_distribution import LabelDistribution, find_problems

NAMES = {0: "anger", 1: "fear", 2: "joy", 3: "surprise"}
TRUTH = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.7, 0.1], [0.0, 0.0, 0.0, 0.0]])
PREDICTED = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.5, 0.1], [0.4, 0.2, 0.2, 0.2]])
LABELS = torch.tensor([0, 1, 2, 3])
VOTED = torch.tensor([1, 1, 0, 0])  # the third target was made from its label, the fourth image has none
GOLDEN = {
    "chebyshev": 0.275, "clark": 0.94336, "canberra": 1.435255, "kl": 0.270692, "cosine": 0.835375, "intersection": 0.725,
    "clark_norm": 0.47168, "canberra_norm": 0.358814, "dist_top1": 100.0,
}  # fmt: skip


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "run"), "TEST.EVALUATOR", "LabelDistribution", "VERBOSE", False])
    return cfg


def scores(logits: Tensor, **facts: Tensor) -> Tensor:
    return FactTensor.of(logits.clone(), **facts)


def feed(evaluator: LabelDistribution, *, size: int = 3, **facts: Tensor) -> None:
    """Feed the four images in batches; logits that softmax alone would read wrongly, as a temperature makes them."""
    evaluator.reset()
    facts = facts or {"distribution": TRUTH, "has_distribution": VOTED}
    for rows in torch.arange(4).split(size):
        target = Target.of(LABELS[rows], **{name: values[rows] for name, values in facts.items()})
        evaluator.process(scores(16 * PREDICTED[rows].log(), distribution=PREDICTED[rows]), target)


def results_of(cfg: CfgNode, **settings: object) -> dict[str, float]:
    for key, value in settings.items():
        cfg.TEST[key] = value
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator)
    return evaluator.evaluate()


def test_means_over_the_voted_images_have_the_stated_values(cfg):
    results = results_of(cfg)
    assert {name: results[name] for name in GOLDEN} == pytest.approx(GOLDEN, abs=1e-5)
    assert not any(name.startswith("synthetic_") for name in results)
    assert all(type(value) is float for value in results.values())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_of_any_size_give_the_same(cfg, size):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator, size=size)
    assert evaluator.evaluate() == pytest.approx(results_of(cfg))


def test_reset_forgets(cfg):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator)
    evaluator.evaluate()
    feed(evaluator)
    assert evaluator.evaluate() == results_of(cfg)


def test_classification_comes_first_unchanged_and_its_accuracy_is_the_last_accuracy_line(cfg, capsys, caplog):
    caplog.set_level("INFO")
    results = results_of(cfg)
    printed = capsys.readouterr().out
    plain = Classification(cfg, lab2cname=NAMES)
    plain.process(PREDICTED, LABELS)
    expected = plain.evaluate()
    assert printed == capsys.readouterr().out
    assert list(results)[:3] == list(expected) and {name: results[name] for name in expected} == expected
    everything = f"{printed}\n{caplog.text}"
    assert re.findall(r"\* accuracy: ([\.\deE+-]+)%", everything) == ["50.0"]
    assert "=> label distribution (targets: 2 voted, 1 synthetic, 1 absent)" in caplog.text
    assert "* kl: 0.2707\n" in caplog.text and "* dist_top1: 100.0%" in caplog.text


def test_polarity_leaves_surprise_out_and_calibration_takes_every_image(cfg):
    results = results_of(cfg)
    assert results["polarity_accuracy"] == pytest.approx(100.0)  # fear taken for anger is as negative
    # Confidences .4 (right), .7 (wrong), .5 (right), .4 (wrong): the two of .4 share a bin.
    assert results["ece"] == pytest.approx(100 * (abs(1 - 0.8) + 0.7 + 0.5) / 4, abs=1e-4)


def test_classes_that_are_no_emotions_have_no_polarity(cfg):
    evaluator = build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "owl", 3: "fox"})
    feed(evaluator)
    assert "polarity_accuracy" not in evaluator.evaluate()


def test_synthetic_targets_count_apart_and_only_if_asked_for(cfg):
    results = results_of(cfg, LDL_SYNTHETIC=True)
    assert {name: results[name] for name in GOLDEN} == pytest.approx(GOLDEN, abs=1e-5)
    assert results["synthetic_chebyshev"] == pytest.approx(0.2)
    assert {name.removeprefix("synthetic_") for name in results if name.startswith("synthetic_")} == set(GOLDEN)


def test_the_trainers_distribution_wins_over_the_softmax_of_its_logits(cfg):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    facts = {"distribution": TRUTH[:2], "has_distribution": VOTED[:2]}
    evaluator.process(scores(16 * PREDICTED[:2].log(), distribution=PREDICTED[:2]), Target.of(LABELS[:2], **facts))
    own = evaluator.evaluate()["kl"]
    evaluator.reset()
    evaluator.process(16 * PREDICTED[:2].log(), Target.of(LABELS[:2], **facts))
    assert own == pytest.approx(GOLDEN["kl"], abs=1e-5) and evaluator.evaluate()["kl"] > 10


def test_a_trainer_without_facts_is_read_through_softmax(cfg):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    evaluator.process(PREDICTED[:2].log(), Target.of(LABELS[:2], distribution=TRUTH[:2], has_distribution=VOTED[:2]))
    assert evaluator.evaluate()["kl"] == pytest.approx(GOLDEN["kl"], abs=1e-5)


def test_targets_without_a_note_on_their_origin_count_as_voted(cfg):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator, distribution=TRUTH * torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
    assert evaluator.evaluate()["chebyshev"] == pytest.approx(GOLDEN["chebyshev"])


def test_without_any_distribution_there_is_classification_and_a_note(cfg, caplog):
    caplog.set_level("INFO")
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    evaluator.process(PREDICTED, LABELS)
    assert list(evaluator.evaluate()) == ["accuracy", "error_rate", "macro_f1"]
    assert "classification only" in caplog.text
    assert not (Path(cfg.OUTPUT_DIR) / "label_distribution.json").exists()


def test_the_file_holds_metrics_counts_and_confusions(cfg):
    results = results_of(cfg)
    stored = json.loads((Path(cfg.OUTPUT_DIR) / "label_distribution.json").read_text("utf-8"))
    assert stored["metrics"] == results
    assert stored["targets"] == {"voted": 2, "synthetic": 1, "absent": 1}
    assert stored["classes"] == list(NAMES.values())
    assert stored["confusion_matrix"] == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(("primary", "first"), [("accuracy", "accuracy"), ("kl", "negative_kl")])
def test_the_primary_metric_comes_first(cfg, primary, first):
    results = results_of(cfg, LDL_PRIMARY=primary)
    assert next(iter(results)) == first
    assert results.get("negative_kl", -results["kl"]) == -results["kl"] < 0


def test_kl_as_primary_needs_votes(cfg):
    cfg.TEST.LDL_PRIMARY = "kl"
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator, distribution=TRUTH, has_distribution=torch.zeros(4))
    with pytest.raises(ValueError, match="TEST.LDL_PRIMARY is 'kl', but no evaluated image has a voted distribution"):
        evaluator.evaluate()


def test_distributions_over_other_classes_are_an_error(cfg):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    feed(evaluator, distribution=torch.full((4, 7), 1 / 7), has_distribution=torch.ones(4))
    with pytest.raises(ValueError, match=r"\(4, 7\).*\(4, 4\)"):
        evaluator.evaluate()


def test_an_impossible_primary_metric_is_refused_at_once(cfg):
    cfg.TEST.LDL_PRIMARY = "clark"
    with pytest.raises(ValueError, match="TEST.LDL_PRIMARY is 'clark'; expected one of accuracy, kl"):
        build_evaluator(cfg, lab2cname=NAMES)


@pytest.mark.parametrize(("key", "value"), [("LDL_PRIMARY", "kl"), ("LDL_SYNTHETIC", True)])
def test_a_key_without_its_evaluator_is_a_problem(cfg, key, value):
    cfg.merge_from_list([f"TEST.{key}", value])
    assert find_problems(cfg) == []
    cfg.TEST.EVALUATOR = "Classification"
    (problem,) = find_problems(cfg)
    assert problem == f"TEST.{key} is {value!r}, but TEST.EVALUATOR is 'Classification'; expected LabelDistribution"


def test_one_image_of_two_classes(cfg):
    evaluator = build_evaluator(cfg, lab2cname={0: "joy", 1: "anger"})
    target = Target.of(torch.tensor([1]), distribution=torch.tensor([[0.25, 0.75]]), has_distribution=torch.tensor([1]))
    evaluator.process(torch.tensor([[0.5, 0.5]]).log(), target)
    results = evaluator.evaluate()
    assert (results["chebyshev"], results["accuracy"], results["polarity_accuracy"]) == (0.25, 0.0, 0.0)


def test_it_runs_without_class_names(tmp_path):
    node = SimpleNamespace(EVALUATOR="LabelDistribution", PER_CLASS_RESULT=False, COMPUTE_CMAT=False, LDL_PRIMARY="accuracy",
                           LDL_SYNTHETIC=False)  # fmt: skip
    evaluator = LabelDistribution(SimpleNamespace(TEST=node, OUTPUT_DIR=str(tmp_path)))
    feed(evaluator)
    assert "polarity_accuracy" not in evaluator.evaluate()
    assert json.loads((tmp_path / "label_distribution.json").read_text("utf-8"))["classes"] == ["0", "1", "2", "3"]

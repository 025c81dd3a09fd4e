"""Classification evaluator: printed block, metrics, files."""

import os
import subprocess
import sys
import types

import pytest
import torch
from dassl.evaluation import Classification, build_evaluator

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
NAMES = {0: "cat", 1: "dog", 2: "owl", 3: "fox"}
GOLDEN = "=> result\n* total: 8\n* correct: 2\n* accuracy: 25.0%\n* error: 75.0%\n* macro_f1: 10.0%\n"
GOLDEN_PER_CLASS = (
    "=> per-class result\n"
    "* class: 0 (cat)\ttotal: 2\tcorrect: 2\tacc: 100.0%\n"
    "* class: 1 (dog)\ttotal: 2\tcorrect: 0\tacc: 0.0%\n"
    "* class: 2 (owl)\ttotal: 2\tcorrect: 0\tacc: 0.0%\n"
    "* class: 3 (fox)\ttotal: 2\tcorrect: 0\tacc: 0.0%\n"
    "* average: 25.0%\n"
)


def make_cfg(**test_node) -> types.SimpleNamespace:
    node = {"EVALUATOR": "Classification", "PER_CLASS_RESULT": False, "COMPUTE_CMAT": False, **test_node}
    return types.SimpleNamespace(TEST=types.SimpleNamespace(**node), OUTPUT_DIR="", VERBOSE=True)


def feed_first_class_always(evaluator: Classification) -> None:
    evaluator.reset()
    for labels in LABELS.split(3):
        logits = torch.zeros(len(labels), 4)
        logits[:, 0] = 1
        evaluator.process(logits, labels)


def test_evaluate_prints_golden_block_and_returns_floats(capsys):
    evaluator = Classification(make_cfg(), lab2cname=NAMES)
    feed_first_class_always(evaluator)
    results = evaluator.evaluate()
    assert capsys.readouterr().out == GOLDEN
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert all(type(value) is float for value in results.values())
    assert results["macro_f1"] == pytest.approx(10.0)


def test_evaluate_per_class_adds_golden_block_and_metric(capsys):
    evaluator = Classification(make_cfg(PER_CLASS_RESULT=True), lab2cname=NAMES)
    feed_first_class_always(evaluator)
    results = evaluator.evaluate()
    assert capsys.readouterr().out == GOLDEN + GOLDEN_PER_CLASS
    assert list(results)[-1] == "perclass_accuracy"
    assert results["perclass_accuracy"] == 25.0


def test_macro_f1_counts_only_labels_that_occur():
    evaluator = Classification(make_cfg())
    evaluator.process(torch.eye(4)[[0, 3]], torch.tensor([0, 0]))
    assert evaluator.evaluate()["macro_f1"] == pytest.approx(100 * 2 / 3)


def test_metrics_equal_scikit_learns(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    cfg = make_cfg(COMPUTE_CMAT=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (60,), generator=generator)  # class 6 is predicted, but never true
    logits = torch.rand(60, 7, generator=generator)
    evaluator = Classification(cfg)
    evaluator.process(logits, labels)
    predicted = logits.argmax(dim=1)
    macro_f1 = metrics.f1_score(labels, predicted, average="macro", labels=labels.unique())
    assert evaluator.evaluate()["macro_f1"] == pytest.approx(100 * macro_f1)
    matrix = torch.from_numpy(metrics.confusion_matrix(labels, predicted, normalize="true"))
    assert torch.allclose(torch.load(tmp_path / "cmat.pt", weights_only=True), matrix)


def test_evaluation_draws_from_no_generator():
    code = (
        "import random; from test_evaluator import *; evaluator = Classification(make_cfg());"
        "feed_first_class_always(evaluator); state = random.getstate(); evaluator.evaluate();"
        "assert random.getstate() == state"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_reset_forgets_earlier_batches():
    evaluator = Classification(make_cfg())
    feed_first_class_always(evaluator)
    evaluator.reset()
    evaluator.process(torch.eye(4), torch.arange(4))
    assert evaluator.evaluate()["accuracy"] == 100.0


def test_confusion_matrix_is_a_tensor_readable_with_weights_only(tmp_path, capsys):
    cfg = make_cfg(COMPUTE_CMAT=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = Classification(cfg)
    feed_first_class_always(evaluator)
    evaluator.evaluate()
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix.shape == (4, 4)
    assert torch.equal(matrix[:, 0], torch.ones(4, dtype=matrix.dtype))
    assert "Confusion matrix is saved to" in capsys.readouterr().out


def test_evaluate_without_images_names_the_keys():
    with pytest.raises(ValueError, match="TEST.SPLIT"):
        Classification(make_cfg()).evaluate()


def test_per_class_result_without_names_names_the_key():
    with pytest.raises(ValueError, match="TEST.PER_CLASS_RESULT"):
        Classification(make_cfg(PER_CLASS_RESULT=True))


def test_build_evaluator_announces_and_refuses_unknown_names(capsys):
    assert isinstance(build_evaluator(make_cfg(), lab2cname=NAMES), Classification)
    assert capsys.readouterr().out == "Loading evaluator: Classification\n"
    with pytest.raises(ValueError, match="Classification"):
        build_evaluator(make_cfg(EVALUATOR="Clasification"))

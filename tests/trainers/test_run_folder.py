"""What a run folder keeps, and refuses: tests on other classes, and figures that are validation figures."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import trainers
from trainers.run_folder import RunFolder, check_classes


def trainer_of(classnames, *, fixed=True):
    return SimpleNamespace(fixed_classes=fixed, dm=SimpleNamespace(dataset=SimpleNamespace(classnames=classnames)))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"data": {"classes": ["cat", "dog"]}}), "utf-8")
    return str(tmp_path)


def test_equal_classes_pass(run):
    check_classes(run, trainer_of(["cat", "dog"]))


@pytest.mark.parametrize("classes", [["cow", "owl"], ["dog", "cat"], ["cat", "dog", "owl"]])
def test_other_classes_are_an_error_also_when_they_are_as_many(run, classes):
    with pytest.raises(ValueError, match="learned 2 classes, the data set has"):
        check_classes(run, trainer_of(classes))


def test_trainers_that_read_class_names_may_meet_new_ones(run):
    check_classes(run, trainer_of(["cow", "owl"], fixed=False))


def test_a_folder_without_a_record_is_no_obstacle(tmp_path):
    check_classes(str(tmp_path), trainer_of(["cow", "owl"]))
    check_classes("", trainer_of(["cow", "owl"]))


@pytest.mark.parametrize("name", trainers.__all__)
def test_trainers_with_a_trained_classifier_are_tied_to_their_classes(name):
    trainer_class = getattr(trainers, name)
    assert getattr(trainer_class, "fixed_classes", False) is issubclass(trainer_class, trainers.LaFTer)


@pytest.mark.parametrize(("kind", "part"), [("val as test", "validation"), ("given", None)])
def test_figures_of_a_set_without_a_test_part_are_called_validation(kind, part, make_trainer, caplog):
    trainer = make_trainer("ZeroshotCLIP")
    trainer.dm.dataset.split_kind = kind
    RunFolder(trainer.cfg, "eval").record_results(trainer)
    with caplog.at_level("WARNING"):
        trainer.test()
    results = json.loads(Path(trainer.cfg.OUTPUT_DIR, "results.json").read_text("utf-8"))
    assert results.get("test_part") == part and results["test"]["accuracy"] >= 0
    assert ("VALIDATION figures" in caplog.text) == (part is not None)

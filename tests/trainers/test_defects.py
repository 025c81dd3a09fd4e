"""Faults that code of this kind is known for, one test each on every trainer that could have them.

`test_defect_index.py` says which test stands for which of them; those that belong to one module are tested beside it.
"""

from __future__ import annotations

import io
import json
import sys
from itertools import product
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from own_images import write_class_folders
from sklearn.metrics import accuracy_score
from tiny_moods import TinyMoods
from tiny_world import IMAGE_SIZE_PX, TinyColours, clip_config, test_logits, write_clip, write_world
from torch.testing import assert_close
from yacs.config import CfgNode

import train
import trainers
from trainers import precision, runs
from trainers.base import Scores
from trainers.lafter import LaFTer
from trainers.lafter_parts.stage_student import StageStudent
from trainers.lafter_parts.students import Prediction

ALL = trainers.__all__
FAMILY = [name for name in ALL if issubclass(TRAINER_REGISTRY.get(name), LaFTer)]
DUAL = {"DATASET.NAME": TinyMoods.__name__, ".MODE": "supervised", ".DUAL.ENABLED": True}
ONE_EPOCH = {"OPTIM.MAX_EPOCH": 1, ".WARMUP_EPOCHS": 0}


class TinyPair(TinyColours):
    """The tiny world's red and green images alone."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        kept = [[item for item in items if item.label < 2] for items in (self.train_x, self.val, self.test)]
        super(TinyColours, self).__init__(train_x=kept[0], val=kept[1], test=kept[2])


if "TinyPair" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyPair)


def one_step(trainer) -> dict[str, float]:
    trainer.before_train()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    return trainer.forward_backward(next(iter(trainer.train_loader_x)))


def images_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILY)
def test_defect_05_optimizer_and_schedule_are_registered_with_the_module(name: str, make_trainer) -> None:
    trainer = make_trainer(name, {".SCHEDULER": "warmup_constant", "OPTIM.MAX_EPOCH": 3})
    first = trainer.get_current_lr("adapt")
    assert first == trainer.optim.param_groups[0]["lr"]
    one_step(trainer)
    trainer.update_lr("adapt")
    assert trainer.get_current_lr("adapt") > first  # the schedule that Dassl steps is that of the optimizer
    saved = [trainer.get_current_lr("adapt"), *(p.detach().clone() for p in trainer.adapt.parameters())]
    trainer.epoch = 0
    trainer.save_model(0, trainer.output_dir)
    trainer.update_lr("adapt")
    trainer.resume_model_if_exist(trainer.output_dir)
    assert trainer.get_current_lr("adapt") == saved[0] and trainer.sched.last_epoch == 1
    assert trainer.optim.state_dict()["state"]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("heads", ["single", "dual"])
def test_defect_07_a_student_returns_one_kind_of_thing_in_every_mode(name: str, heads: str, make_trainer) -> None:
    for checkpoint in (False, True):
        trainer = make_trainer(name, DUAL | {".DUAL.HEADS": heads, ".GRAD_CKPT": checkpoint}, run=f"checkpoint{checkpoint}")
        for mode in ("train", "eval"):
            trainer.set_model_mode(mode)
            with torch.set_grad_enabled(mode == "train"):
                prediction = trainer.student(images_of(2))
            assert type(prediction) is Prediction
            expected = {"logits", "stage_logits", "features"} | ({"distribution_logits"} if heads == "dual" else set())
            assert {part for part, value in vars(prediction).items() if type(value) is torch.Tensor} == expected
            assert type(trainer.model_inference(images_of(2))) is Scores


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("prec", ["bf16", "fp16"])
def test_defect_08_a_half_precision_step_leaves_every_weight_in_fp32(name: str, prec: str, make_trainer, monkeypatch) -> None:
    # torch autocasts to fp16 on a CPU as well, only slowly, which is why a run is refused there.
    monkeypatch.setattr(precision, "problems_with_precision", lambda *_, **__: [])
    trainer = make_trainer(name, {".PREC": prec})
    before = {key: (p.data_ptr(), p.dtype) for key, p in trainer.student.named_parameters()}
    assert {dtype for _, dtype in before.values()} == {torch.float32}
    assert np.isfinite(one_step(trainer)["loss"])
    assert (trainer.scaler is not None) == (prec == "fp16")
    assert {p.grad.dtype for p in trainer.adapt.parameters()} == {torch.float32}
    with torch.no_grad():
        logits, full = trainer.model_inference(images_of(2)), trainer.student(images_of(2)).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert not torch.equal(logits.as_subclass(torch.Tensor), full)  # the towers did run in half precision
    assert {key: (p.data_ptr(), p.dtype) for key, p in trainer.student.named_parameters()} == before


def test_defect_08_zeroshot_in_fp16_loads_half_weights_and_feeds_them_half_images(make_trainer, monkeypatch) -> None:
    monkeypatch.setattr(precision, "problems_with_precision", lambda *_, **__: [])
    trainer = make_trainer("ZeroshotCLIP", {".PREC": "fp16"})
    assert {p.dtype for p in trainer.clip.model.parameters()} == {torch.float16}
    logits = test_logits(trainer)
    assert logits.dtype == torch.float32
    assert_close(logits, test_logits(make_trainer("ZeroshotCLIP", run="full")), atol=0.5, rtol=0)  # of logits up to 100


CHOICES_OF_WEIGHTS = {
    "last": {},
    "proxy": {".SELECT": "proxy"},
    "best_val": {".MODE": "supervised", "TEST.FINAL_MODEL": "best_val"},
}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("choice", CHOICES_OF_WEIGHTS)
def test_defect_10_test_images_are_read_once_and_when_all_is_chosen(name: str, choice: str, make_trainer) -> None:
    trainer = make_trainer(name, {"OPTIM.MAX_EPOCH": 3} | CHOICES_OF_WEIGHTS[choice])
    inner, after_train, passes, finished = trainer.test_loader, trainer.after_train, [], []

    class Watched:
        dataset = inner.dataset

        def __len__(self) -> int:
            return len(inner)

        def __iter__(self):
            passes.append(bool(finished))
            return iter(inner)

    trainer.test_loader = Watched()
    trainer.after_train = lambda: finished.append(True) or after_train()
    trainer.train()
    assert passes == [True]


@pytest.mark.parametrize("name", FAMILY)
def test_defect_10_the_reported_test_maximum_chooses_nothing(name: str, make_trainer, monkeypatch, tmp_path: Path) -> None:
    accuracies = iter((90.0, 20.0, 10.0))
    monkeypatch.setattr(LaFTer, "_measure_test_accuracy", lambda self: next(accuracies))
    trainer = make_trainer(name, {".REPORT_TEST_MAX": True, "OPTIM.MAX_EPOCH": 3})
    trainer.train()
    last = torch.load(tmp_path / "run" / "adapt" / "model.pth.tar-3", weights_only=True)["state_dict"]
    assert [key for key, value in trainer.adapt.state_dict().items() if not torch.equal(value, last[key])] == []
    assert not (tmp_path / "run" / "adapt" / "model-best.pth.tar").exists()


@pytest.mark.parametrize("name", ["ZeroshotCLIP", *FAMILY])
def test_defect_11_accuracy_is_scikit_learns_in_percent(name: str, make_trainer) -> None:
    trainer = make_trainer(name, {} if name == "ZeroshotCLIP" else ONE_EPOCH)
    trainer.train()
    truth = [item.label for item in trainer.dm.dataset.test]
    expected = 100 * accuracy_score(truth, test_logits(trainer).argmax(dim=1))
    assert 0 < expected < 100  # else twice the factor could hide
    assert trainer.test() == pytest.approx(expected)
    if name != "ZeroshotCLIP":
        assert trainer._measure_test_accuracy() == pytest.approx(expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("shape", [(32, 6, 24), (128, 12, 40), (32, 24, 48)], ids=str)
def test_defect_18_every_size_is_read_from_the_tower(name: str, shape: tuple, make_trainer, tmp_path: Path) -> None:
    width, depth, embed_dim = shape
    clip = write_clip(tmp_path / "clip", clip_config(width=width, depth=depth, embed_dim=embed_dim))
    shallow = {".STAGES": [[1, 2], [3, 4], [5, 6]]} if depth == 6 and name != "LaFTer" else {}
    trainer = make_trainer(name, {"MODEL.BACKBONE.NAME": clip, **ONE_EPOCH, **shallow})
    trainer.train()
    student = trainer.student
    prompts = [p for key, p in trainer.adapt.named_parameters() if "prompts" in key]
    assert {p.shape for p in prompts} == {(3, width)} and trainer.adapt.classifier.weight.shape == (3, embed_dim)
    assert student(images_of(2)).features.shape == (2, embed_dim)
    if isinstance(student, StageStudent):
        assert student.stages[-1][-1] == depth
        for stage, weights in zip(student.stages, student.stage_weights()["nga"], strict=True):
            delta = torch.arange(len(stage) - 1, -1, -1) * 12 / depth
            assert_close(torch.tensor(weights), (-delta.square() / 2).softmax(0), atol=2e-3, rtol=0)  # hardly trained


@pytest.mark.parametrize("name", FAMILY)
def test_defect_19_one_image_at_a_time_of_two_classes_trains_and_tests(name: str, make_trainer) -> None:
    small = {"DATASET.NAME": "TinyPair", "DATALOADER.TRAIN_X.BATCH_SIZE": 1, "DATALOADER.TEST.BATCH_SIZE": 1}
    trainer = make_trainer(name, ONE_EPOCH | small | {".TEACHER": "self", ".DIST_ALIGN": "uniform"})
    trainer.train()
    assert len(trainer.report.rows[0]["histogram"]) == 2 and sum(trainer.report.rows[0]["histogram"]) == 6
    prediction = trainer.student(images_of(1))
    assert prediction.logits.shape == (1, 2) and prediction.stage_logits.shape[1:] == (1, 2)
    assert trainer.student.plain_features(images_of(1)).shape == prediction.features.shape == (1, 24)
    scores = trainer.model_inference(images_of(1))
    assert scores.shape == scores.facts["distribution"].shape == (1, 2)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("tokens", [3, 0])
def test_defect_20_checkpointed_blocks_give_every_parameter_its_gradient(tokens: int, name: str, make_trainer) -> None:
    gradients = []
    for checkpoint in (False, True):
        settings = {".GRAD_CKPT": checkpoint, ".AUGMENT": "none", ".PROMPT_TOKENS": tokens}
        trainer = make_trainer(name, settings, run=f"run{checkpoint}")
        # Without prompts, nothing before block 1 trains: the input is frozen, as it is below the first open stage.
        trainer.adapt.norms["ln_pre"].requires_grad_(tokens > 0)
        one_step(trainer)  # raises if what trains has no gradient
        gradients.append({key: p.grad for key, p in trainer.adapt.named_parameters() if p.requires_grad})
    for key, expected in gradients[0].items():
        assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "cache"), [("ZeroshotCLIP", ""), *product(FAMILY, ("none", "ram"))])
def test_defect_25_what_a_spawned_worker_needs_can_be_pickled(name: str, cache: str, make_trainer) -> None:
    trainer = make_trainer(name, {".CACHE_IMAGES": cache, ".TEACHER": "shared"} if cache else {})  # weak and strong views
    for loader in (trainer.train_loader_x, trainer.val_loader, trainer.test_loader):
        rows = ForkingPickler.loads(ForkingPickler.dumps(loader.dataset))
        torch.manual_seed(0)
        expected = loader.dataset[1]
        torch.manual_seed(0)
        found = rows[1]
        assert set(found) == set(expected) and torch.equal(found["img"], expected["img"])


def test_defect_30_letters_that_a_cp1252_console_lacks_end_no_run(tmp_path: Path, monkeypatch) -> None:
    world = write_world(tmp_path / "Wörld ☃")
    data = write_class_folders(tmp_path / "Bilder ☃", each=5, classes=("naïve", "☃ man"))
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="cp1252"))
    monkeypatch.setattr(runs, "collect_env_info", lambda: "machine")
    words = ["--trainer", "LaFTer", "--data", str(data), "--backbone", f"local-dir:{world / 'clip'}", "--seed", "1"]
    settings = {"USE_CUDA": False, "DATALOADER.NUM_WORKERS": 0, "OPTIM.MAX_EPOCH": 1, "TEST.PER_CLASS_RESULT": True}
    settings |= {"DATASET.TEST_PERCENT": 0.3}
    own = {"PROMPT_TOKENS": 3, "TEXT.EPOCHS": 5, "TEXT.CACHE_DIR": tmp_path / "☃"}
    settings |= {f"TRAINER.LAFTER.{key}": value for key, value in own.items()}
    words += ["--output-dir", str(tmp_path / "Läufe ☃"), *(str(word) for pair in settings.items() for word in pair)]
    train.main(words)
    sys.stdout.flush()
    printed = output.getvalue().decode("cp1252")
    assert "* class: 1 (\\u2603 man)" in printed and "* class: 0 (naïve)" in printed
    run = tmp_path / "Läufe ☃"
    assert "* class: 1 (☃ man)" in (run / "log.txt").read_text(encoding="utf-8")
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]["classes"] == ["naïve", "☃ man"]

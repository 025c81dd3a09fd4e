"""Pseudo-labels: selection, alignment, teachers, and a cache that is keyed by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers.lafter_parts.pseudo_teacher import (
    OnlineTeacher,
    PseudoLabels,
    SelectionRule,
    WholeSetTeacher,
    cached_labels,
    label_key,
    predict_all,
    resolve_shares,
)

PROBS = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05], [0.5, 0.1, 0.4]])


def test_without_alignment_the_largest_probability_wins() -> None:
    labels, confidence = SelectionRule().align(PROBS)
    assert labels.tolist() == [0] * 6
    assert torch.equal(confidence, PROBS[:, 0])


def test_uniform_alignment_gives_every_class_its_share() -> None:
    labels, _ = SelectionRule(resolve_shares("uniform", [], 3)).align(PROBS)
    assert torch.bincount(labels, minlength=3).tolist() == [2, 2, 2]
    assert labels[4] == 0 and labels[1] == 1 and labels[5] == 2


@pytest.mark.parametrize("favourite", [0, 1, 2])
def test_given_shares_decide_which_class_is_frequent(favourite: int) -> None:
    shares = [6.0 if label == favourite else 1.0 for label in range(3)]
    labels, _ = SelectionRule(resolve_shares("shares", shares, 3)).align(PROBS)
    assert torch.bincount(labels, minlength=3).argmax() == favourite


def test_threshold_is_absolute_and_share_is_per_class() -> None:
    labels, confidence = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert SelectionRule(threshold=0.6).select(labels, confidence).counted.tolist() == [True] * 4 + [False] * 2
    kept = SelectionRule(keep_share=0.5).select(labels, confidence).counted
    assert kept.tolist() == [True, True, False, False, True, False]
    both = SelectionRule(keep_share=0.5, threshold=0.85).select(labels, confidence).counted
    assert both.tolist() == [True] + [False] * 5


@pytest.mark.parametrize(("every_epoch", "calls"), [(False, 1), (True, 3)])
def test_whole_set_teacher_labels_once_or_before_every_epoch(every_epoch: bool, calls: int) -> None:
    made = []

    def make(epoch: int) -> PseudoLabels:
        made.append(epoch)
        return PseudoLabels(torch.arange(4) + len(made), torch.ones(4), torch.ones(4, dtype=torch.bool))

    teacher = WholeSetTeacher(make, every_epoch=every_epoch)
    for epoch in range(3):
        teacher.start_epoch(epoch)
    assert made == list(range(calls))
    assert teacher.label(torch.tensor([2, 0]), None).labels.tolist() == [2 + calls, calls]


def test_online_teacher_labels_the_weak_views_of_the_batch() -> None:
    seen = []
    teacher = OnlineTeacher(lambda weak: seen.append(weak) or PROBS[: len(weak)], SelectionRule(threshold=0.55))
    weak = torch.zeros(3, 3, 8, 8)
    found = teacher.label(torch.tensor([5, 1, 2]), weak)
    assert seen[0] is weak
    assert found.labels.tolist() == [0, 0, 0] and found.counted.tolist() == [True, False, True]


def test_predictions_come_in_loader_order() -> None:
    batches = [{"img": torch.full((2, 1), 1.0)}, {"img": torch.full((1, 1), 2.0)}]
    assert predict_all(batches, lambda images: images, torch.device("cpu")).flatten().tolist() == [1.0, 1.0, 2.0]


@pytest.fixture
def inputs(tmp_path: Path) -> dict:
    paths = [tmp_path / "data" / f"{number}.png" for number in range(2)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1234")
    return {
        "weights": "abc",
        "modules": ["GELU", "Linear"],
        "classifier": torch.zeros(2, 3),
        "preprocessing": "224",
        "paths": [str(path) for path in paths],
        "root": str(tmp_path / "data"),
        "shares": None,
        "precision": "fp32 on cpu",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "abd"},
        {"modules": ["Linear", "QuickGELU"]},
        {"classifier": torch.ones(2, 3)},
        {"preprocessing": "336"},
        {"shares": torch.tensor([0.5, 0.5])},
        {"precision": "bf16 on cuda"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_label_key_covers_every_input(change: dict, inputs: dict) -> None:
    assert label_key(**inputs) == label_key(**inputs)
    assert label_key(**inputs | change) != label_key(**inputs)


def test_label_key_covers_names_order_and_sizes_of_the_files_but_not_their_place(inputs: dict, tmp_path: Path) -> None:
    key = label_key(**inputs)
    assert label_key(**inputs | {"paths": inputs["paths"][::-1]}) != key
    assert label_key(**inputs | {"paths": inputs["paths"][:1]}) != key
    moved = tmp_path / "elsewhere"
    (tmp_path / "data").rename(moved)
    paths = [str(moved / Path(path).name) for path in inputs["paths"]]
    assert label_key(**inputs | {"paths": paths, "root": str(moved)}) == key
    Path(paths[0]).write_bytes(b"12345")
    assert label_key(**inputs | {"paths": paths, "root": str(moved)}) != key


def test_labels_are_made_once_and_a_damaged_file_again(tmp_path: Path) -> None:
    made = []

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        made.append(1)
        return torch.tensor([1, 0]), torch.tensor([0.5, 0.7])

    for _ in range(2):
        labels, confidence = cached_labels(tmp_path, "key", 2, make)
    assert len(made) == 1 and labels.tolist() == [1, 0] and confidence.tolist() == pytest.approx([0.5, 0.7])
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert cached_labels(tmp_path, "key", 2, make)[0].tolist() == [1, 0]
    assert len(made) == 2
    assert cached_labels(tmp_path, "key", 2, make)[0].tolist() == [1, 0]
    assert len(made) == 2

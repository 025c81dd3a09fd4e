"""What batches are learned from."""

from __future__ import annotations

import torch

from trainers.lafter_parts.targets import Annotations, TrainingTarget

LABELS = torch.tensor([2, 0])
Q = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])


def test_labels_of_the_data_set_all_count_and_are_certain() -> None:
    target = TrainingTarget.of_labels(LABELS, Q)
    assert target.labels is LABELS and target.distribution is Q
    assert target.counted.tolist() == [True, True] and target.confidence.tolist() == [1.0, 1.0]
    assert target.confidence.dtype == torch.float32


def test_targets_of_several_views_come_one_view_after_the_other() -> None:
    target = TrainingTarget(LABELS, torch.tensor([True, False]), torch.tensor([0.9, 0.4]), Q)
    assert target.repeated(1) is target
    twice = target.repeated(2)
    assert twice.labels.tolist() == [2, 0, 2, 0] and twice.counted.tolist() == [True, False] * 2
    assert torch.equal(twice.distribution, torch.cat([Q, Q])) and len(twice.confidence) == 4
    assert TrainingTarget.of_labels(LABELS, None).repeated(2).distribution is None


def test_annotations_take_votes_only_where_the_batch_has_them() -> None:
    plain = Annotations.of_batch({"label": LABELS, "img": None}, torch.device("cpu"))
    assert plain.labels is LABELS and plain.votes is None and plain.has_votes is None
    batch = {"label": LABELS, "distribution": Q, "has_distribution": torch.tensor([1, 0])}
    voted = Annotations.of_batch(batch, torch.device("cpu"))
    assert torch.equal(voted.votes, Q) and voted.has_votes.tolist() == [1, 0]

"""Rows of a classifier, beyond what whole predictions show."""

from __future__ import annotations

import pytest
import torch

from trainers.facts import Scores
from trainers.prediction.rows import ClassRows, distinct_names


def test_polarity_follows_the_label() -> None:
    class Shouting:
        device = torch.device("cpu")

        def model_inference(self, images: torch.Tensor) -> torch.Tensor:
            return 5 * torch.eye(3)

    rows = ClassRows(Shouting(), ["joy", "fear", "surprise"])({"img": torch.zeros(3)})
    assert [row["polarity"] for row in rows] == ["positive", "negative", None]


def test_temperature_of_training_and_a_learned_distribution_are_kept() -> None:
    class Warm:
        device = torch.device("cpu")

        def model_inference(self, images: torch.Tensor) -> torch.Tensor:
            return Scores.of(torch.tensor([[16.0, 8.0]]), temperature=16.0, distribution=torch.tensor([[0.4, 0.6]]))

    (row,) = ClassRows(Warm(), ["a", "b"])({"img": torch.zeros(1)})
    assert row["confidence"] == pytest.approx(torch.tensor([1.0, 0.5]).softmax(0)[0].item(), abs=1e-6)
    assert row["distribution"] == pytest.approx({"a": 0.4, "b": 0.6})
    (row,) = ClassRows(Warm(), ["a", "b"], temperature=4.0)({"img": torch.zeros(1)})
    assert row["confidence"] == pytest.approx(torch.tensor([4.0, 2.0]).softmax(0)[0].item(), abs=1e-6)
    assert row["calibrated"] is True


def test_equally_named_classes_keep_their_own_columns() -> None:
    assert distinct_names(["crane", "maillot", "crane"]) == ["crane #0", "maillot", "crane #2"]

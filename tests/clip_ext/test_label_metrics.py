"""Distances of label distributions, calibration and polarity: stated values, scipy and scikit-learn, and the edges."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import distance
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix

from clip_ext.label_metrics import (
    compute_calibration_error,
    compute_label_distances,
    compute_polarity_accuracy,
    count_confusions,
    find_polarities,
)

TRUTH = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]])
PREDICTED = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
GOLDEN = {
    "chebyshev": 0.275, "clark": 0.94336, "canberra": 1.435255, "kl": 0.270692, "cosine": 0.835375, "intersection": 0.725,
    "clark_norm": 0.47168, "canberra_norm": 0.358814, "dist_top1": 1.0,
}  # fmt: skip


def random_distributions(rows: int, classes: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def means(truth: torch.Tensor, predicted: torch.Tensor) -> dict[str, float]:
    return {name: values.mean().item() for name, values in compute_label_distances(truth, predicted).items()}


def test_stated_values():
    assert means(TRUTH, PREDICTED) == pytest.approx(GOLDEN, abs=1e-5)


def test_distances_equal_scipy_row_by_row():
    truth, predicted = random_distributions(5, 6, 0), random_distributions(5, 6, 1)
    found = compute_label_distances(truth, predicted)
    for row, (d, p) in enumerate(zip(truth.double().numpy(), predicted.double().numpy(), strict=True)):
        assert found["chebyshev"][row] == pytest.approx(distance.chebyshev(d, p))
        assert found["canberra"][row] == pytest.approx(distance.canberra(d, p))
        assert found["cosine"][row] == pytest.approx(1 - distance.cosine(d, p))
        assert found["kl"][row] == pytest.approx(entropy(d, p), abs=1e-6)
        assert found["intersection"][row] == pytest.approx(1 - np.abs(d - p).sum() / 2, abs=1e-6)
        assert found["clark"][row] == pytest.approx(np.sqrt((((d - p) / (d + p)) ** 2).sum()))


def test_equal_distributions_are_at_distance_zero_and_opposite_ones_at_the_maximum():
    one, other = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    same, apart = means(one, one), means(one, other)
    assert [same[name] for name in ("chebyshev", "clark", "canberra", "kl")] == [0, 0, 0, 0]
    assert (same["cosine"], same["intersection"]) == (1, 1)
    # Two of three classes differ; the third is 0/0, which counts as 0.
    assert (apart["clark"], apart["canberra"]) == (pytest.approx(math.sqrt(2)), pytest.approx(2.0))
    assert apart["kl"] == pytest.approx(-math.log(1e-12))
    assert (apart["cosine"], apart["intersection"], apart["dist_top1"]) == (0, 0, 0)


def test_normed_distances_are_one_where_every_class_differs_fully():
    found = means(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    assert (found["clark_norm"], found["canberra_norm"]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_prediction_is_not_renormalised():
    half = means(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]]))
    assert (half["kl"], half["intersection"]) == (pytest.approx(math.log(2)), pytest.approx(0.5))


def test_top1_hits_any_tied_maximum_of_the_truth():
    truth = torch.tensor([[3 / 8, 3 / 8, 2 / 8]] * 3)
    assert compute_label_distances(truth, torch.eye(3))["dist_top1"].tolist() == [1, 1, 0]


def test_distances_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        compute_label_distances(TRUTH, PREDICTED[:, :3])


def test_one_row_and_two_classes_keep_their_axes():
    assert {values.shape for values in compute_label_distances(TRUTH[:1, :2], PREDICTED[:1, :2]).values()} == {(1,)}


def reference_calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    confidence, hit = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for lower in range(bins):
        inside = (confidence > lower / bins) & (confidence <= (lower + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_error_equals_a_loop_over_bins(bins: int):
    probs = torch.randn(300, 5, generator=torch.Generator().manual_seed(3)).mul(2).softmax(dim=-1).double()
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(4))
    expected = reference_calibration_error(probs.numpy(), labels.numpy(), bins)
    assert compute_calibration_error(probs, labels, n_bins=bins) == pytest.approx(expected)


def test_calibration_error_of_known_cases():
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert compute_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0
    assert compute_calibration_error(sure, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.75)


def test_confusions_equal_scikit_learn():
    labels, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    expected = confusion_matrix(labels, predicted, labels=[0, 1, 2, 3])
    assert count_confusions(labels, predicted, 4).tolist() == expected.tolist()


def test_polarities_follow_the_names_and_leave_surprise_out():
    assert find_polarities(["Anger", "joy", "surprise", "awe"]).tolist() == [-1, 1, 0, 1]


@pytest.mark.parametrize("names", [["zero", "one"], ["joy", "anger", "cat"], ["joy", "awe"], ["surprise"]])
def test_other_classes_have_no_polarity(names: list[str]):
    assert find_polarities(names) is None


def test_polarity_accuracy_skips_surprise_and_forgives_the_wrong_emotion_of_the_right_side():
    polarities = find_polarities(["anger", "fear", "joy", "surprise"])
    labels, predicted = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([1, 2, 2, 3, 0])
    assert compute_polarity_accuracy(labels, predicted, polarities) == pytest.approx(2 / 4)
    assert compute_polarity_accuracy(labels[4:], predicted[4:], polarities) is None

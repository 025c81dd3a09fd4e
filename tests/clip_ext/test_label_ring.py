"""Distances on rings of emotions, and the Gaussian around a label (strategy1)."""

import pytest
import torch

from clip_ext.label_ring import EMOTION6_RING, MIKELS_RING, problems_with_ring, ring_distances, ring_distribution

EMOTION6 = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
MIKELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
RINGS = {"emotion6": (EMOTION6_RING, EMOTION6), "mikels": (MIKELS_RING, MIKELS)}


@pytest.mark.parametrize("case", RINGS)
def test_defect_9_distances_follow_the_ring(case):
    ring, classes = RINGS[case]
    distances = ring_distances(ring, classes)
    assert torch.equal(distances, distances.t())
    assert torch.equal(distances.diag(), torch.zeros(len(classes), dtype=torch.int64))
    for place, name in enumerate(ring):
        row = distances[classes.index(name)]
        assert row[classes.index(ring[place - 1])] == 1  # also around the end
        assert row.max() == len(classes) // 2 and (row == 1).sum() == 2


@pytest.mark.parametrize(
    "n_classes, sigma, expected",
    [
        (6, 0.5, (0.7309, 0.1119, 0.0152, 0.0150)),
        (6, 1.0, (0.3794, 0.2361, 0.0645, 0.0193)),
        (6, 2.5, (0.2041, 0.1899, 0.1535, 0.1092)),
        (8, 1.0, (0.3741, 0.2314, 0.0605, 0.0154, 0.0115)),
    ],
)
def test_golden_values_by_distance(n_classes, sigma, expected):
    names = [str(number) for number in range(n_classes)]
    q = ring_distribution(torch.tensor([0]), ring_distances(names, names), sigma=sigma, epsilon=0.1)
    assert torch.allclose(q[0, : len(expected)], torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize(
    "case, name, expected",
    [
        ("emotion6", "anger", (0.3794, 0.2361, 0.0645, 0.2361, 0.0193, 0.0645)),
        ("mikels", "amusement", (0.3741, 0.0605, 0.2314, 0.0154, 0.2314, 0.0605, 0.0115, 0.0154)),
    ],
)
def test_golden_values_in_class_order(case, name, expected):
    ring, classes = RINGS[case]
    label = torch.tensor([classes.index(name)])
    q = ring_distribution(label, ring_distances(ring, classes), sigma=1.0, epsilon=0.1)
    assert torch.allclose(q, torch.tensor([expected]), atol=1e-4)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 5.0, 1e3])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_rows_sum_to_one_and_are_largest_at_the_label(sigma, epsilon):
    labels = torch.arange(8)
    q = ring_distribution(labels, ring_distances(MIKELS_RING, MIKELS), sigma=sigma, epsilon=epsilon)
    assert q.dtype == torch.float32 and q.isfinite().all()
    assert torch.allclose(q.sum(dim=1), torch.ones(8), atol=1e-6)
    assert torch.equal(q.max(dim=1).values, q.diag())


def test_two_classes_are_neighbours():
    distances = ring_distances(("no", "yes"), ("yes", "no"))
    assert distances.tolist() == [[0, 1], [1, 0]]
    assert ring_distribution(torch.tensor([1]), distances, sigma=1.0, epsilon=0.0).shape == (1, 2)


def test_names_match_whatever_their_case():
    assert problems_with_ring(("Joy", " awe"), ("joy", "Awe")) == []


def test_every_fault_of_a_ring_is_named():
    ring = ("anger", "anger", "rage", "fear", "joy", "sadness")
    assert problems_with_ring(ring, EMOTION6) == [
        "twice on the ring: anger",
        "missing on the ring: disgust, surprise",
        "no class of the data set: rage",
    ]
    with pytest.raises(ValueError, match="is no permutation of the classes; twice on the ring: anger; missing"):
        ring_distances(ring, EMOTION6)

"""Where an image's distribution comes from, and what the dual task makes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_moods import MOODS, RING, VOTELESS, votes_of
from torch.nn import functional as F
from yacs.config import CfgNode

from clip_ext.label_ring import ring_distances, ring_distribution
from trainers.config import _lafter_node
from trainers.lafter_parts.dual_task import DualTask, SyntheticDistributions
from trainers.lafter_parts.targets import Annotations, TrainingTarget

MOODY = {"DATASET.NAME": "TinyMoods", ".MODE": "supervised", ".DUAL.ENABLED": True}
LABELS = torch.tensor([0, 2, 3])
VOTES = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
HAS_VOTES = torch.tensor([1, 0, 1])
GIVEN = Annotations(LABELS, VOTES, HAS_VOTES)


def item(path: str, **extras) -> SimpleNamespace:
    """Stand for an item whose image does not exist."""
    return SimpleNamespace(impath=path, extras=extras)


def dual_node(**keys) -> CfgNode:
    node = _lafter_node().DUAL
    node.merge_from_list([item for pair in keys.items() for item in pair])
    return node


def make_dual(ring: tuple[str, ...] = RING, **keys) -> DualTask:
    node = dual_node(**keys)
    return DualTask(node, SyntheticDistributions(node, ring, MOODS), len(MOODS))


def strategy1(labels: torch.Tensor, sigma: float = 1.0, epsilon: float = 0.1) -> torch.Tensor:
    return ring_distribution(labels, ring_distances(RING, MOODS), sigma=sigma, epsilon=epsilon)


def target_of(labels: torch.Tensor, q: torch.Tensor) -> TrainingTarget:
    return TrainingTarget.of_labels(labels, q)


def test_votes_are_taken_and_gaps_filled_as_missing_says() -> None:
    filled = make_dual().of_annotations(GIVEN)
    assert torch.equal(filled[[0, 2]], VOTES[[0, 2]]) and torch.equal(filled[1], strategy1(LABELS)[1])
    one_hot = make_dual(MISSING="onehot").of_annotations(GIVEN)
    assert torch.equal(one_hot[1], torch.tensor([0.0, 0.0, 1.0, 0.0])) and torch.equal(one_hot[0], VOTES[0])


def test_strategy1_takes_no_votes() -> None:
    q = make_dual(STRATEGY="strategy1", SIGMA=0.5, EPSILON=0.3).of_annotations(GIVEN)
    assert torch.equal(q, strategy1(LABELS, 0.5, 0.3))


def test_a_data_set_without_any_votes_is_all_gaps() -> None:
    assert torch.equal(make_dual().of_annotations(Annotations(LABELS)), strategy1(LABELS))


def test_no_ring_is_needed_while_all_images_have_votes() -> None:
    dual = make_dual(ring=())
    assert torch.equal(dual.of_annotations(Annotations(LABELS[:1], VOTES[:1], HAS_VOTES[:1])), VOTES[:1])
    items = [item("a.jpg", distribution=(0.25,) * 4, has_distribution=1)]
    assert dual.data_problems(items, label_free=False) == []


ITEMS = [
    item("a.jpg", distribution=(0.25,) * 4, has_distribution=1),
    item("b.jpg", distribution=(0.0,) * 4, has_distribution=0),
    SimpleNamespace(impath="c.jpg"),  # a plain datum has no extras
]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "1 votes, 2 synthetic (strategy1), 0 missing"),
        ({"STRATEGY": "strategy1"}, "0 votes, 3 synthetic (strategy1), 0 missing"),
        ({"MISSING": "onehot"}, "1 votes, 0 synthetic (strategy1), 2 missing (one-hot labels instead)"),
    ],
)
def test_sources_are_counted_and_logged(keys: dict, words: str, caplog) -> None:
    with caplog.at_level("INFO"):
        assert make_dual(**keys).data_problems(ITEMS, label_free=False) == []
    assert caplog.messages == [f"Distributions of 3 training images: {words}"]


def test_problems_with_the_data_are_named() -> None:
    (problem,) = make_dual(MISSING="error").data_problems(ITEMS, label_free=False)
    assert problem.startswith("2 training image(s) have no distribution, e.g. b.jpg; DUAL.MISSING is 'error'")
    (problem,) = make_dual(ring=()).data_problems(ITEMS, label_free=False)
    assert "no emotion ring" in problem and "set DUAL.RING" in problem
    assert problem.endswith("(or DUAL.MISSING to onehot: 2 training images have no votes)")
    (problem,) = make_dual(RING=["awe", "joy", "fear", "rage"]).data_problems(ITEMS, label_free=False)
    assert "is no permutation of the classes; missing on the ring: anger; no class of the data set: rage" in problem
    short = item("d.jpg", distribution=(0.5, 0.5), has_distribution=1)
    (problem,) = make_dual().data_problems([short], label_free=False)
    assert problem == "distribution of d.jpg has 2 values; expected 4"


def test_label_free_needs_the_ring_and_reads_no_item() -> None:
    class Unreadable:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"{name} of an item was read")

    assert make_dual().data_problems([Unreadable()], label_free=True) == []
    (problem,) = make_dual(ring=()).data_problems([Unreadable()], label_free=True)
    assert "no emotion ring" in problem


def test_ring_of_the_config_wins_over_the_data_sets() -> None:
    node = dual_node(RING=list(MOODS))
    found = SyntheticDistributions(node, RING, MOODS).of(torch.tensor([0]))
    expected = ring_distribution(torch.tensor([0]), ring_distances(MOODS, MOODS), sigma=1.0, epsilon=0.1)
    assert torch.equal(found, expected) and not torch.equal(found, strategy1(torch.tensor([0])))


def test_loss_of_one_head_has_the_golden_values() -> None:
    for kind, tau, expected in (("ce", 1.0, 0.967606), ("kl", 16.0, 33.3306), ("kl", 12.0, 17.5742)):
        node = dual_node(LOSS=kind, TEMPERATURE=tau)
        dual = DualTask(node, SyntheticDistributions(node, (), ("a", "b", "c")), 3)
        target = target_of(torch.tensor([0]), torch.tensor([[0.5, 0.3, 0.2]]))
        loss = dual.loss(torch.tensor([[2.0, 1.0, 0.0]]), None, target, smoothing=0.0)
        assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_loss_of_two_heads_follows_the_formula_and_smooths_the_class_part() -> None:
    f, g, q = torch.randn(3, 4), torch.randn(3, 4), strategy1(LABELS)
    loss = make_dual(HEADS="dual", LAMBDA=0.3, TEMPERATURE=2.0).loss(f, g, target_of(LABELS, q), smoothing=0.1)
    kl = F.kl_div(F.log_softmax(g / 2, -1), q, reduction="batchmean")
    expected = 0.7 * F.cross_entropy(f, LABELS, label_smoothing=0.1) + 0.3 * 4 * kl
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("heads", ["single", "dual"])
@pytest.mark.parametrize("change", [{"LAMBDA": 0.5}, {"TEMPERATURE": 2.0}, {"STRATEGY": "strategy1"}], ids=str)
def test_defect_13_every_key_of_the_loss_changes_the_gradient(heads: str, change: dict) -> None:
    def gradient(**keys) -> torch.Tensor:
        dual = make_dual(HEADS=heads, **keys)
        logits = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
        target = target_of(LABELS, dual.of_annotations(GIVEN))
        dual.loss(logits, logits.flip(-1) if heads == "dual" else None, target, smoothing=0.1).backward()
        return logits.grad

    assert (gradient(**change) - gradient()).abs().max() > 1e-3


def test_defect_4_prediction_keeps_the_temperature_and_reads_the_distributions_own_head() -> None:
    f, g = torch.tensor([[9.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 8.0, 0.0, 0.0]])
    dual = make_dual(TEMPERATURE=16.0)
    assert torch.allclose(dual.predict(f, None), (f / 16).softmax(-1))
    assert torch.allclose(dual.predict(f, g), (g / 16).softmax(-1))


@pytest.mark.parametrize("heads", ["single", "dual"])
@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_defect_16_large_gaps_and_votes_with_zeros_stay_finite(heads: str, gap: float) -> None:
    logits = torch.tensor([[gap, -gap, 0.0, 0.0]], requires_grad=True)
    target = target_of(torch.tensor([1]), torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    for kind in ("ce", "kl"):
        dual = make_dual(HEADS=heads, LOSS=kind)
        loss = dual.loss(logits, logits * 2 if heads == "dual" else None, target, smoothing=0.1)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()
        assert dual.predict(logits.detach(), None).isfinite().all()


@pytest.mark.parametrize("heads", ["single", "dual"])
def test_defect_19_one_image_of_two_classes_keeps_its_shape(heads: str) -> None:
    node = dual_node(HEADS=heads)
    synthetic = SyntheticDistributions(node, ("no", "yes"), ("yes", "no"))
    dual, label = DualTask(node, synthetic, 2), torch.tensor([1])
    q = dual.of_annotations(Annotations(label, torch.zeros(1, 2), torch.tensor([0])))
    logits = torch.tensor([[0.5, -0.5]])
    assert q.shape == dual.predict(logits, None).shape == (1, 2)
    assert dual.loss(logits, logits if heads == "dual" else None, target_of(label, q), smoothing=0.0).shape == ()


# In a trainer


@pytest.mark.parametrize("name", ["LaFTer", "MultiLayerLaFTer", "HybridCascadeLaFTer"])
def test_defect_3_distributions_follow_their_image_through_a_shuffled_loader(name: str, make_trainer) -> None:
    trainer = make_trainer(name, MOODY | {"SEED": 3})
    order = []
    for batch in trainer.train_loader_x:
        parsed = trainer.parse_batch_train(batch)
        q = trainer._find_target(parsed).distribution
        for row, path, label in zip(q, batch["impath"], parsed.annotations.labels, strict=True):
            number = int(Path(path).stem)
            order.append(number)
            has_votes = number % 5 != VOTELESS
            expected = torch.tensor(votes_of(number)) if has_votes else strategy1(label[None])[0]
            assert torch.allclose(row, expected)
    assert sorted(order) == list(range(8)) and order != sorted(order)


def test_test_batches_carry_real_and_synthetic_distributions(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {"DATASET.NAME": "TinyMoods"})
    images, target = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    assert target.facts["has_distribution"].tolist() == [1, 1, 1, 0, 1]
    for number, row in enumerate(target.facts["distribution"]):
        expected = strategy1(target.data[None, number])[0] if number == VOTELESS else torch.tensor(votes_of(number))
        assert torch.allclose(row, expected)


def test_images_without_label_or_ring_have_no_synthetic_distribution(make_trainer) -> None:
    node = dual_node()
    facts = {"distribution": VOTES, "has_distribution": HAS_VOTES}
    labels = torch.tensor([0, -1, 3])
    with_ring = SyntheticDistributions(node, RING, MOODS)
    assert torch.equal(with_ring.complete(facts, labels)["distribution"], VOTES)
    alone = with_ring.complete({}, labels)
    assert alone["has_distribution"].tolist() == [0, 0, 0]
    assert alone["distribution"][1].tolist() == [0.0] * 4 and torch.equal(alone["distribution"][0], strategy1(LABELS)[0])
    assert SyntheticDistributions(node, (), MOODS).complete({}, labels) == {}
    trainer = make_trainer("LaFTer")  # colours are on no ring
    assert "distribution" not in trainer.parse_batch_test(next(iter(trainer.test_loader)))[1].facts

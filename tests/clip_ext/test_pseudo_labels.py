import json
import math

import pytest
import torch

from clip_ext.pseudo_labels import align_distribution, report_labels, select_above, select_share_per_class

UNIFORM = torch.tensor([0.5, 0.5])


def test_one_round_equals_the_hand_computed_case():
    # Columns sum to 1.4 and 0.6 and get 1 each: rows (.8/1.4, .2/.6), (.6/1.4, .4/.6), then rows are scaled to 1.
    aligned = align_distribution(torch.tensor([[0.8, 0.2], [0.6, 0.4]]), UNIFORM, rounds=1)
    expected = torch.tensor([[0.6316, 0.3684], [0.3913, 0.6087]])
    assert torch.allclose(aligned, expected, atol=1e-4)


def test_two_images_and_two_classes_converge_to_the_closed_form():
    # Scaling keeps the cross ratio (.8*.4)/(.2*.6) = 8/3, and equal shares force a symmetric matrix: x^2/(1-x)^2 = 8/3.
    root = math.sqrt(8 / 3)
    x = root / (1 + root)
    aligned = align_distribution(torch.tensor([[0.8, 0.2], [0.6, 0.4]]), UNIFORM)
    assert torch.allclose(aligned, torch.tensor([[x, 1 - x], [1 - x, x]]), atol=1e-5)


@pytest.mark.parametrize("shares", [[1.0, 1.0, 1.0], [0.2, 0.3, 0.5]])
def test_columns_reach_their_shares_and_rows_sum_to_one(shares):
    generator = torch.Generator().manual_seed(0)
    probs = (torch.randn(300, 3, generator=generator) + torch.tensor([2.0, 0.0, 0.0])).softmax(dim=1)
    aligned = align_distribution(probs, torch.tensor(shares))
    assert torch.allclose(aligned.sum(dim=1), torch.ones(300), atol=1e-6)
    assert torch.allclose(aligned.mean(dim=0), torch.tensor(shares) / sum(shares), atol=1e-3)
    assert aligned.dtype == probs.dtype


def test_alignment_recovers_labels_of_a_biased_teacher():
    labels = torch.arange(400) % 4
    logits = 2 * torch.eye(4)[labels] + torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    biased = (logits + torch.tensor([2.0, 0.0, 0.0, -1.0])).softmax(dim=1)
    before = (biased.argmax(dim=1) == labels).float().mean()
    after = (align_distribution(biased, torch.ones(4)).argmax(dim=1) == labels).float().mean()
    assert after > before + 0.1


def test_defect_16_one_hot_probabilities_and_empty_columns_stay_finite():
    probs = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e-30, 1.0, 0.0]])
    aligned = align_distribution(probs, torch.ones(3))
    assert aligned.isfinite().all()
    assert torch.allclose(aligned.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.0], [0.5, float("nan")]])
def test_wrong_shares_name_the_key(shares):
    with pytest.raises(ValueError, match="CLASS_SHARES is .*expected 2 numbers above 0"):
        align_distribution(torch.tensor([[0.8, 0.2]]), torch.tensor(shares))


def test_select_above_keeps_all_at_zero_and_the_confident_ones_else():
    confidence = torch.tensor([0.2, 0.9, 0.5])
    assert select_above(confidence, 0.0).all()
    assert select_above(confidence, 0.5).tolist() == [False, True, True]


def test_select_share_keeps_the_best_of_every_class():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.1])
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 5])
    kept = select_share_per_class(confidence, labels, 0.5)
    assert kept.nonzero().flatten().tolist() == [0, 1, 4, 6]
    assert select_share_per_class(confidence, labels, 1.0).all()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_select_share_outside_its_range_raises(share):
    with pytest.raises(ValueError, match=f"is {share}"):
        select_share_per_class(torch.ones(2), torch.zeros(2, dtype=torch.long), share)


def test_report_golden_case():
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.8, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]])
    report = report_labels(probs, teacher_labels=torch.tensor([0, 1, 2, 0]), previous_labels=torch.tensor([0, 1, 1, 0]))
    assert report.mean_confidence == pytest.approx((0.5 + 1 + 0.8 + 1) / 4)
    assert report.mean_entropy == pytest.approx((math.log(2) + 0.500402) / 4, abs=1e-5)
    assert report.agreement == 0.75 and report.change_rate == 0.0
    assert report.histogram == (2, 2, 0, 0)
    assert report.effective_classes == pytest.approx(2.0)
    assert not report.collapsed
    assert report.proxy_score == pytest.approx(0.75 * 2 / 4)
    assert json.loads(json.dumps(report.to_dict()))["histogram"] == [2, 2, 0, 0]


def test_report_raises_the_collapse_alarm_below_half_of_the_classes():
    probs = torch.eye(4)[torch.tensor([0, 0, 0, 1])]
    report = report_labels(probs)
    assert report.collapsed
    assert report.agreement is None and report.change_rate is None and report.proxy_score is None


def test_defect_19_report_of_one_image_and_two_classes():
    report = report_labels(torch.tensor([[0.3, 0.7]]))
    assert report.histogram == (0, 1)
    assert align_distribution(torch.tensor([[0.3, 0.7]]), UNIFORM).shape == (1, 2)

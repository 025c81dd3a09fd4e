import pytest
import torch
from torch.nn import functional as F

from clip_ext.losses import consistency_loss, distribution_loss, predict_distribution, soft_targets, two_head_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.0]])
VOTES = torch.tensor([[0.5, 0.3, 0.2]])
LABEL = torch.tensor([0])
SHALLOW, DEEP = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.2, 0.5, 0.3]]).log()


def test_soft_targets_golden_mixture():
    targets = soft_targets(LABEL, 3, distribution=VOTES, lam=0.8)
    assert torch.allclose(targets, torch.tensor([[0.6, 0.24, 0.16]]), atol=1e-6)


def test_soft_targets_smooth_the_label_part_only():
    targets = soft_targets(LABEL, 3, smoothing=0.3, distribution=VOTES, lam=0.5)
    assert torch.allclose(targets, torch.tensor([[0.65, 0.2, 0.15]]), atol=1e-6)
    assert torch.allclose(soft_targets(LABEL, 3, distribution=VOTES, lam=1.0), VOTES)


def test_soft_targets_without_a_needed_distribution_raises():
    with pytest.raises(ValueError, match="DUAL.LAMBDA is 0.8"):
        soft_targets(LABEL, 3, lam=0.8)


@pytest.mark.parametrize(
    "kind, temperature, expected", [("ce", 1.0, 0.967606), ("kl", 16.0, 33.3306), ("kl", 12.0, 17.5742)]
)
def test_dual_task_golden_values(kind, temperature, expected):
    target = soft_targets(LABEL, 3, distribution=VOTES, lam=0.8)
    loss = distribution_loss(LOGITS, target, temperature=temperature, kind=kind)
    assert loss.item() == pytest.approx(expected, abs=1e-5 if kind == "ce" else 1e-4)


@pytest.mark.parametrize("kind", ["ce", "kl"])
def test_dual_task_golden_gradient(kind):
    logits = LOGITS.clone().requires_grad_()
    distribution_loss(logits, soft_targets(LABEL, 3, distribution=VOTES, lam=0.8), kind=kind).backward()
    assert torch.allclose(logits.grad, torch.tensor([[0.0652, 0.0047, -0.0700]]), atol=1e-4)


@pytest.mark.parametrize("smoothing, expected", [(0.0, 0.407606), (0.1, 0.507606)])
def test_without_distribution_the_loss_is_cross_entropy(smoothing, expected):
    loss = distribution_loss(LOGITS, soft_targets(LABEL, 3, smoothing=smoothing))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    logits, labels = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 5
    ours = distribution_loss(logits, soft_targets(labels, 5, smoothing=smoothing))
    assert torch.allclose(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing), atol=1e-6)


@pytest.mark.parametrize("kind", ["ce", "kl"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 16.0])
def test_gradient_is_temperature_times_the_gap(kind, temperature):
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.tensor([[0.4, 0.6, 0.0, 0.0]])
    distribution_loss(logits, target, temperature=temperature, kind=kind).backward()
    expected = temperature * (predict_distribution(logits.detach(), temperature) - target)
    assert torch.allclose(logits.grad, expected, atol=1e-5)


def test_stages_share_the_target_and_are_averaged():
    stages = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    target = soft_targets(torch.tensor([0, 1, 2, 3]), 5)
    mask = torch.tensor([True, False, True, True])
    for selection in (None, mask):
        expected = torch.stack([distribution_loss(stage, target, mask=selection) for stage in stages]).mean()
        assert torch.allclose(distribution_loss(stages, target, mask=selection), expected)


def test_mask_takes_the_mean_over_the_rest():
    logits, target = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(3)),
        soft_targets(torch.tensor([0, 1, 2, 0]), 3),
    )
    mask = torch.tensor([True, False, True, False])
    assert torch.allclose(distribution_loss(logits, target, mask=mask), distribution_loss(logits[mask], target[mask]))


def test_empty_mask_gives_a_zero_that_keeps_its_graph():
    logits = LOGITS.clone().requires_grad_()
    loss = distribution_loss(logits, VOTES, mask=torch.tensor([False]))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_unknown_kind_and_pairs_name_the_allowed_values():
    with pytest.raises(ValueError, match="DUAL.LOSS is 'mse'; expected one of ce, kl"):
        distribution_loss(LOGITS, VOTES, kind="mse")
    with pytest.raises(ValueError, match="CONS_PAIRS is 'some'; expected one of all, adjacent, to_last"):
        consistency_loss(LOGITS[None], pairs="some")


def test_consistency_golden_values_of_both_directions():
    assert consistency_loss(torch.stack([SHALLOW, DEEP])).item() == pytest.approx(0.537176, abs=1e-5)
    assert consistency_loss(torch.stack([DEEP, SHALLOW])).item() == pytest.approx(0.583815, abs=1e-5)
    both = consistency_loss(torch.stack([SHALLOW, DEEP]), symmetric=True)
    assert both.item() == pytest.approx((0.537176 + 0.583815) / 2, abs=1e-5)


@pytest.mark.parametrize(
    "pairs, couples", [("all", [(0, 1), (0, 2), (1, 2)]), ("adjacent", [(0, 1), (1, 2)]), ("to_last", [(0, 2), (1, 2)])]
)
def test_consistency_pairs_equal_a_loop(pairs, couples):
    stages, tau = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(4)), 2.0
    expected = 0.0
    for shallow, deep in couples:
        student, target = F.log_softmax(stages[shallow] / tau, -1), F.softmax(stages[deep] / tau, -1)
        expected += tau**2 * F.kl_div(student, target, reduction="batchmean") / len(couples)
    assert torch.allclose(consistency_loss(stages, pairs=pairs, temperature=tau), expected, atol=1e-6)


def test_consistency_detached_trains_shallow_stages_only():
    for detach, reaches_deepest in ((True, False), (False, True)):
        stages = torch.stack([SHALLOW, DEEP]).requires_grad_()
        consistency_loss(stages, detach=detach).backward()
        assert stages.grad[0].abs().sum() > 0
        assert bool(stages.grad[1].abs().sum() > 0) == reaches_deepest


@pytest.mark.parametrize("pairs", ["all", "adjacent", "to_last"])
def test_consistency_of_one_stage_is_zero_in_fp32(pairs):
    loss = consistency_loss(torch.randn(1, 2, 3, dtype=torch.bfloat16), pairs=pairs)
    assert loss.item() == 0 and loss.dtype == torch.float32 and loss.shape == ()


def test_predict_distribution_golden_value_shows_why_temperature_stays():
    sharp = predict_distribution(torch.tensor([[0.6, 0.3, 0.1]]).log() * 16, 1.0)
    assert torch.allclose(sharp, torch.tensor([[0.99998, 1.5e-5, 4e-13]]), atol=1e-5)
    soft = predict_distribution(torch.tensor([[0.6, 0.3, 0.1]]).log() * 16, 16.0)
    assert torch.allclose(soft, torch.tensor([[0.6, 0.3, 0.1]]), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"lam": 0.7}, {"smoothing": 0.2}, {"temperature": 2.0}, {"mask": torch.tensor([True, False])}, {"weight": 0.5}]
    + [{"pairs": "to_last"}, {"cons_temperature": 2.0}, {"detach": False}, {"symmetric": True}],
    ids=lambda change: next(iter(change)),
)
def test_defect_13_every_setting_of_a_loss_changes_the_gradient(change):
    def gradient(lam=0.2, smoothing=0.0, temperature=1.0, mask=None, weight=0.1, cons_temperature=1.0, **consistency):
        stages = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()
        votes = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.1, 0.1]])
        target = soft_targets(torch.tensor([0, 1]), 4, smoothing=smoothing, distribution=votes, lam=lam)
        loss = distribution_loss(stages[-1], target, temperature=temperature, mask=mask)
        loss = loss + weight * consistency_loss(stages, temperature=cons_temperature, **consistency)
        loss.backward()
        return stages.grad

    assert (gradient(**change) - gradient()).abs().max() > 1e-4


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_defect_16_large_logit_gaps_and_zero_targets_stay_finite(gap):
    logits = torch.tensor([[gap, 0.0, -gap], [0.0, gap, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    stages = torch.stack([logits, logits.flip(-1)])
    loss = sum(distribution_loss(logits, target, kind=kind) for kind in ("ce", "kl"))
    loss = loss + consistency_loss(stages, detach=False) + consistency_loss(stages, symmetric=True)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("batch, n_classes", [(1, 2), (1, 3), (2, 2)])
def test_defect_19_batch_of_one_and_two_classes_keep_their_shape(batch, n_classes):
    logits = torch.randn(batch, n_classes, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(batch, dtype=torch.long)
    assert soft_targets(labels, n_classes).shape == predict_distribution(logits, 2.0).shape == (batch, n_classes)
    assert torch.allclose(distribution_loss(logits, soft_targets(labels, n_classes)), F.cross_entropy(logits, labels))
    assert consistency_loss(torch.stack([logits, -logits])).shape == ()


def test_half_precision_logits_are_computed_in_fp32():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(6)).bfloat16()
    target = soft_targets(torch.tensor([0, 1, 2, 0]), 3)
    for loss in (distribution_loss(logits, target), consistency_loss(torch.stack([logits, -logits]))):
        assert loss.dtype == torch.float32
    assert torch.equal(distribution_loss(logits, target), distribution_loss(logits.float(), target))


def test_two_heads_golden_values_and_formula():
    g = torch.tensor([[0.0, 1.0, -1.0]])
    kl = F.kl_div(F.log_softmax(g / 2, -1), VOTES, reduction="batchmean")
    expected = 0.2 * F.cross_entropy(LOGITS, LABEL) + 0.8 * 2.0**2 * kl
    classes = soft_targets(LABEL, 3)
    assert torch.allclose(two_head_loss(LOGITS, g, classes, VOTES, lam=0.8, temperature=2.0), expected)
    alone = two_head_loss(LOGITS, None, classes, VOTES, lam=0.8, temperature=2.0)
    assert alone.item() == pytest.approx(0.2 * 0.407606, abs=1e-6)


@pytest.mark.parametrize("lam, reached", [(0.0, (True, False)), (0.5, (True, True)), (1.0, (False, True))])
def test_lambda_divides_the_gradient_between_two_heads(lam, reached):
    f, g = LOGITS.clone().requires_grad_(), LOGITS.flip(-1).requires_grad_()
    zeros = torch.tensor([[0.0, 1.0, 0.0]])
    two_head_loss(f, g, soft_targets(LABEL, 3), zeros, lam=lam, temperature=4.0).backward()
    assert tuple(bool(x.grad.abs().sum() > 0) for x in (f, g)) == reached


def test_two_heads_mask_both_parts_and_average_stages():
    generator = torch.Generator().manual_seed(8)
    stages, g = torch.randn(2, 4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    target, votes = soft_targets(torch.tensor([0, 1, 2, 0]), 3), torch.rand(4, 3, generator=generator).softmax(-1)
    mask = torch.tensor([True, False, True, False])
    whole = two_head_loss(stages, g, target, votes, lam=0.3, temperature=1.0, mask=mask)
    parts = [two_head_loss(f[mask], g[mask], target[mask], votes[mask], lam=0.3, temperature=1.0) for f in stages]
    assert torch.allclose(whole, torch.stack(parts).mean())


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_defect_16_two_heads_stay_finite(gap):
    logits = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    votes = torch.tensor([[0.0, 0.0, 1.0]])
    loss = two_head_loss(logits, logits.flip(-1) * 2, soft_targets(LABEL, 3), votes, lam=0.5, temperature=1.0)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()

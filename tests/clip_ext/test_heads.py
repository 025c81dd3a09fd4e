import math

import pytest
import torch
from torch.nn import functional as F

from clip_ext.heads import LogitScale, TextClassifier, fit_text_classifier
from clip_ext.text_bank import TextBank


def make_bank(counts=(30, 30, 30), embed_dim=16, balance=True):
    """Unit features scattered around one random direction per class."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor(counts)
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    centres = F.normalize(torch.randn(len(counts), embed_dim, generator=generator), dim=-1)
    features = F.normalize(centres[labels] + 0.1 * torch.randn(len(labels), embed_dim, generator=generator), dim=-1)
    weights = len(labels) / (len(counts) * counts[labels].float()) if balance else torch.ones(len(labels))
    return TextBank(("",) * len(labels), labels, features, weights, "", tuple("abcdefgh"[: len(counts)]))


def make_classifier(n_classes=3, embed_dim=16, seed=0):
    torch.manual_seed(seed)
    return TextClassifier(n_classes, embed_dim)


def test_classifier_is_one_bias_free_fp32_weight_within_the_kaiming_bound():
    classifier = make_classifier(50, 64)
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]
    assert classifier.weight.shape == (50, 64) and classifier.weight.dtype == torch.float32
    assert 0.9 / 8 < classifier.weight.abs().max().item() <= 1 / 8


@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (3, 1, 16), (3, 5, 16)])
def test_defect_19_classifier_keeps_every_leading_dimension(shape):
    classifier = make_classifier(n_classes=2)
    assert classifier(torch.randn(shape)).shape == (*shape[:-1], 2)


def test_classifier_takes_half_precision_features_without_touching_its_weight():
    classifier = make_classifier()
    assert classifier(torch.randn(2, 16).bfloat16()).dtype == torch.float32
    assert classifier.weight.dtype == torch.float32


def test_fit_separates_the_classes_and_lowers_the_loss():
    bank, classifier = make_bank(), make_classifier()
    losses = fit_text_classifier(classifier, bank, epochs=200, lr=0.01)
    assert len(losses) == 200 and losses[-1] < losses[0]
    assert (classifier(bank.features).argmax(dim=1) == bank.labels).all()
    assert classifier.weight.grad is None


def test_fit_repeats_with_its_seed_and_leaves_the_global_random_state():
    bank, weights = make_bank(), []
    for seed in (1, 1, 2):
        classifier = make_classifier()
        state = torch.get_rng_state()
        fit_text_classifier(classifier, bank, epochs=5, lr=0.01, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(classifier.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fit_equals_a_plain_loop():
    bank, classifier = make_bank(), make_classifier()
    reference = torch.nn.Linear(16, 3, bias=False)
    reference.weight.data.copy_(classifier.weight.data)
    losses = fit_text_classifier(classifier, bank, epochs=3, lr=0.01, seed=9)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.01)
    generator = torch.Generator().manual_seed(9)
    for expected in losses:
        noisy = bank.features + 0.1 * torch.randn(bank.features.shape, generator=generator)
        loss = F.cross_entropy(reference(noisy), bank.labels, label_smoothing=0.1)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(reference.weight, classifier.weight, atol=1e-6)


def test_fit_noise_is_as_strong_as_asked():
    quiet, loud = make_classifier(), make_classifier()
    bank = make_bank()
    quiet_loss = fit_text_classifier(quiet, bank, epochs=100, lr=0.01, noise_std=0.0)[-1]
    loud_loss = fit_text_classifier(loud, bank, epochs=100, lr=0.01, noise_std=1.0)[-1]
    assert loud_loss > quiet_loss + 0.05


def test_defect_22_balanced_weights_enter_the_loss():
    bank = make_bank(counts=(90, 10))
    classifier = make_classifier(n_classes=2)
    per_text = F.cross_entropy(classifier(bank.features), bank.labels, label_smoothing=0.1, reduction="none").detach()
    balanced = (per_text[:90].mean() + per_text[90:].mean()) / 2
    first = fit_text_classifier(make_classifier(n_classes=2), bank, epochs=1, lr=0.01, noise_std=0.0)[0]
    assert first == pytest.approx(balanced.item(), abs=1e-6)
    assert first != pytest.approx(per_text.mean().item(), abs=1e-4)


def test_fit_refuses_a_classifier_of_another_size():
    with pytest.raises(ValueError, match=r"\(3, 8\); the text bank needs \(3, 16\)"):
        fit_text_classifier(make_classifier(3, 8), make_bank(), epochs=1, lr=0.1)


def test_logit_scale_starts_at_init_and_learns():
    scale = LogitScale(10.0)
    assert scale().item() == pytest.approx(10.0, rel=1e-6)
    scale().backward()
    assert scale.log_scale.grad.item() == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("beyond, edge", [(math.log(1e3), 100.0), (-2.0, 1.0)])
def test_logit_scale_stays_in_range_and_can_come_back(beyond, edge):
    scale = LogitScale()
    scale.log_scale.data.fill_(beyond)
    assert scale.eval()().item() == pytest.approx(edge, rel=1e-5)
    value = scale.train()()
    assert value.item() == pytest.approx(edge, rel=1e-5)
    value.backward()
    assert scale.log_scale.grad.abs().item() > 0


@pytest.mark.parametrize("init", [0.5, 101.0])
def test_logit_scale_refuses_values_outside_its_range(init):
    with pytest.raises(ValueError, match=rf"SCALE_INIT is {init}; expected a number in \[1, 100\]"):
        LogitScale(init)

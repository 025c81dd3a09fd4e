"""Who judges weak views, and the moving average of teacher `ema`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

EMA = {".TEACHER": "ema", ".EMA_DECAY": 0.6, "OPTIM.LR": 0.01}


def probs_through(visual, classifier: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Judge with a whole tower of its own: what the trainer must not need."""
    with torch.no_grad():
        return F.linear(F.normalize(visual(images), dim=-1), classifier).softmax(-1)


def norm_values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for m in module.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_teacher_equals_a_second_tower_that_is_averaged_after_every_optimizer_step(accumulate: int, make_trainer) -> None:
    trainer = make_trainer("LaFTer", EMA | {".GRAD_ACCUM": accumulate})
    trainer.before_train()
    visual = trainer.clip.model.visual
    tower, classifier = copy.deepcopy(visual), trainer.adapt.classifier.weight.detach().clone()
    updates = []
    inner = trainer.forward_backward

    def step(batch: dict) -> dict[str, float]:
        before = trainer.adapt.classifier.weight.detach().clone()
        weak = batch["img"]
        expected = probs_through(tower, classifier, weak)
        assert torch.allclose(trainer.judges.averaged(weak), expected, atol=1e-6)
        assert torch.equal(trainer.teacher.label(batch["index"], weak).labels, expected.argmax(1))
        summary = inner(batch)
        if not torch.equal(before, trainer.adapt.classifier.weight):
            updates.append(trainer.batch_idx)
            with torch.no_grad():
                for mean, value in zip(
                    [p for m in tower.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()],
                    norm_values(visual),
                    strict=True,
                ):
                    mean.copy_(0.6 * mean + 0.4 * value)
                classifier.copy_(0.6 * classifier + 0.4 * trainer.adapt.classifier.weight)
        return summary

    trainer.forward_backward = step
    for trainer.epoch in range(2):
        trainer.before_epoch()
        trainer.run_epoch()
    assert len(updates) == 4 // accumulate
    images = next(iter(trainer.test_loader))["img"]
    assert not torch.allclose(trainer.judges.averaged(images), trainer.judges.frozen(images), atol=1e-5)
    assert not torch.allclose(trainer.judges.averaged(images), trainer.judges.shared(images), atol=1e-5)


def test_ema_keeps_layer_norms_and_one_classifier_and_no_tower(make_trainer, tmp_path) -> None:
    trainer = make_trainer("LaFTer", EMA)
    trainer.train()
    saved = torch.load(tmp_path / "run" / "adapt" / "model.pth.tar-2", weights_only=True)
    assert set(saved["state_dict"]) == set(trainer.adapt.state_dict())
    assert not any("ema" in name for name in saved["state_dict"])
    norms = sum(p.numel() for p in trainer.adapt.norms.parameters())
    average = saved["trainer_state"]["extra"]["ema"]
    assert sum(value.numel() for value in average) == norms + trainer.adapt.classifier.weight.numel()


def test_judges_move_no_weight_and_keep_no_graph(make_trainer) -> None:
    trainer = make_trainer("LaFTer", EMA)
    trainer.before_train()
    before = norm_values(trainer.clip.model.visual)
    images = next(iter(trainer.test_loader))["img"]
    for judge in (trainer.judges.frozen, trainer.judges.shared, trainer.judges.averaged, trainer.judges.student):
        probs = judge(images)
        assert not probs.requires_grad and torch.allclose(probs.sum(1), torch.ones(5))
    assert all(torch.equal(a, b) for a, b in zip(before, norm_values(trainer.clip.model.visual), strict=True))


def test_frozen_judge_sees_through_the_first_norms_and_the_shared_one_through_the_current(make_trainer) -> None:
    trainer = make_trainer("LaFTer")
    trainer.before_train()
    first = copy.deepcopy(trainer.clip.model.visual)
    with torch.no_grad():
        for p in trainer.adapt.norms.parameters():
            p.mul_(1.5)
    images, weight = next(iter(trainer.test_loader))["img"], trainer.text_classifier.weight
    assert torch.allclose(trainer.judges.frozen(images), probs_through(first, weight, images), atol=1e-6)
    assert torch.allclose(trainer.judges.shared(images), probs_through(trainer.clip.model.visual, weight, images), atol=1e-6)
    assert not torch.allclose(trainer.judges.shared(images), trainer.judges.frozen(images), atol=1e-4)

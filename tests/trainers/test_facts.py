"""Tensors that carry facts."""

from __future__ import annotations

import torch

from trainers.base import Scores, Target


def test_facts_stay_on_the_tensor_and_off_whatever_is_computed_from_it() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    scores = Scores.of(logits, distribution=logits.softmax(-1))
    assert isinstance(scores, torch.Tensor) and torch.equal(scores, logits)
    assert torch.equal(scores.facts["distribution"], logits.softmax(-1))
    for result in (scores.float() * 1, scores.argmax(dim=-1), scores[:1], torch.cat([scores, scores])):
        assert type(result) is torch.Tensor
    assert scores.max(1)[1].tolist() == [1]


def test_wrapping_shares_memory_and_keeps_the_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    scores = Scores.of(weight * 3, distribution=None)
    scores.sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]
    labels = torch.tensor([0, 1])
    assert Target.of(labels, index=labels).data_ptr() == labels.data_ptr()


def test_two_tensors_have_facts_of_their_own() -> None:
    first, second = Target.of(torch.tensor([0]), index=1), Target.of(torch.tensor([0]), index=2)
    assert (first.facts["index"], second.facts["index"]) == (1, 2)

"""Accuracy, distances and the registries of model parts."""

from __future__ import annotations

import pytest
import torch
from dassl.metrics import compute_accuracy, compute_distance_matrix
from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_head, build_network
from torch import nn


def test_accuracy_counts_labels_among_the_top_scores():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 1, 2, 2])
    top1, top2 = compute_accuracy(scores, labels, topk=(1, 2))
    assert top1.shape == (1,) and (top1.item(), top2.item()) == (50.0, 75.0)
    assert compute_accuracy((scores, None), labels)[0].item() == 50.0


@pytest.mark.parametrize(
    ("metric", "expected"), [("euclidean", [[0.0, 25.0], [4.0, 17.0]]), ("cosine", [[0.0, 1.0], [0.0, 1.0]])]
)
def test_distance_matrix_compares_all_rows(metric, expected):
    first, second = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert torch.allclose(compute_distance_matrix(first, second, metric), torch.tensor(expected), atol=1e-5)


def test_distance_matrix_refuses_unfit_inputs():
    with pytest.raises(ValueError, match="metric is 'manhattan'; expected one of euclidean, cosine"):
        compute_distance_matrix(torch.ones(1, 2), torch.ones(1, 2), "manhattan")
    with pytest.raises(AssertionError, match="input2 has 1 dimensions"):
        compute_distance_matrix(torch.ones(1, 2), torch.ones(2))
    with pytest.raises(AssertionError, match="widths differ: 2 and 3"):
        compute_distance_matrix(torch.ones(1, 2), torch.ones(1, 3))


def test_mlp_head_has_the_layers_asked_for(capsys):
    head = build_head("mlp", in_features=4, hidden_layers=[3, 2], activation="leaky_relu", bn=True, dropout=0.5)
    block = ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"]
    assert [type(layer).__name__ for layer in head.mlp] == block * 2
    assert head.out_features == 2 and head(torch.ones(5, 4)).shape == (5, 2)
    assert capsys.readouterr().out == "Head: mlp\n"
    assert len(build_head("mlp", verbose=False, in_features=4, hidden_layers=3, bn=False).mlp) == 2
    with pytest.raises(NotImplementedError, match="MODEL.HEAD.ACTIVATION is 'tanh'; expected one of relu, leaky_relu"):
        build_head("mlp", hidden_layers=[2], activation="tanh")
    with pytest.raises(AssertionError, match="MODEL.HEAD.HIDDEN_LAYERS"):
        build_head("mlp", hidden_layers=[])


def test_backbones_are_found_by_name(monkeypatch):
    monkeypatch.setattr(BACKBONE_REGISTRY, "_obj_map", {})

    @BACKBONE_REGISTRY.register()
    class Flat(Backbone):
        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self._out_features = width

    assert Backbone().out_features is None
    backbone = build_backbone("Flat", width=8)
    assert isinstance(backbone, nn.Module) and backbone.out_features == 8
    with pytest.raises(ValueError, match=r"do you mean \[Flat\]"):
        build_backbone("Flatt")
    with pytest.raises(ValueError, match="got \\[fcn\\]"):
        build_network("fcn")

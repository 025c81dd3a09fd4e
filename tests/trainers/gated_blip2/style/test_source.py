"""What the gates take for a style: from the encoder, from the data, or a control's."""

import pytest
import torch

from trainers.gated_blip2.config import CHOICES
from trainers.gated_blip2.style.encoder import StyleEncoder, StyleOutput
from trainers.gated_blip2.style.networks import build_network
from trainers.gated_blip2.style.source import StyleSource, derange, describe_encoder, find_source_problems
from trainers.gated_blip2.style.view import StyleView

B, WIDTH, C = 6, 5, 3
LABELS = torch.tensor([0, 2, -1, 1, 2, 0])


def make(kind: str, *, dropout: float = 0.0, n_classes: int | None = C) -> StyleSource:
    return StyleSource(kind, width=WIDTH, n_classes=n_classes, dropout=dropout)


@pytest.fixture
def output() -> StyleOutput:
    generator = torch.Generator().manual_seed(0)
    return StyleOutput(torch.randn(B, WIDTH, generator=generator), torch.randn(B, C, generator=generator))


@pytest.mark.parametrize("kind", CHOICES["STYLE.SOURCE"])
@pytest.mark.parametrize("training", [False, True])
def test_every_source_gives_fp32_of_its_width_for_each_sample(kind: str, training: bool, output: StyleOutput) -> None:
    source = make(kind, dropout=0.3)
    style = source(output, LABELS, training=training)
    assert style.shape == (B, source.width) and style.dtype == torch.float32
    assert source.width == (C if kind in ("logits", "label") else WIDTH)
    assert len(list(source.parameters())) == (kind == "static")


def test_features_and_logits_are_the_encoders(output: StyleOutput) -> None:
    assert torch.equal(make("features")(output, LABELS), output.features)
    assert torch.equal(make("logits")(output, LABELS), output.logits)
    assert torch.equal(make("features")(StyleOutput(output.features.half(), None), LABELS), output.features.half().float())


def test_label_is_one_hot_and_zero_where_unknown() -> None:
    expected = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]).float()
    assert torch.equal(make("label")(None, LABELS), expected)
    for wrong in (-2, 3):
        with pytest.raises(ValueError, match="expected -1 .unknown. to 2"):
            make("label")(None, torch.tensor([0, wrong]))


def test_static_is_one_learned_constant_for_all() -> None:
    source = make("static")
    style = source(None, LABELS)
    assert torch.equal(style, source.constant.expand(B, -1)) and (source.constant != 0).all()
    style.sum().backward()
    assert torch.equal(source.constant.grad, torch.full((WIDTH,), float(B)))


def test_zeros_are_zeros_and_need_no_encoder() -> None:
    assert torch.equal(make("zeros")(None, LABELS, training=True), torch.zeros(B, WIDTH))
    assert [kind for kind in CHOICES["STYLE.SOURCE"] if make(kind).needs_encoder] == ["features", "logits", "shuffled"]


def test_shuffled_gives_everyone_anothers_features_in_training_only(output: StyleOutput) -> None:
    source, generator = make("shuffled"), torch.Generator().manual_seed(1)
    assert torch.equal(source(output, LABELS), output.features)
    for _ in range(20):
        style = source(output, LABELS, training=True, generator=generator)
        assert not (style == output.features).all(1).any()
        assert torch.equal(style.sort(0).values, output.features.sort(0).values)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_derange_keeps_nothing_in_its_place_and_is_random(n: int) -> None:
    orders = {tuple(derange(n, torch.Generator().manual_seed(seed)).tolist()) for seed in range(40)}
    for order in orders:
        assert sorted(order) == list(range(n)) and all(place != index for index, place in enumerate(order))
    assert len(orders) == 1 if n == 2 else len(orders) > 1


def test_a_batch_of_one_cannot_be_shuffled(output: StyleOutput) -> None:
    one = StyleOutput(output.features[:1], None)
    with pytest.raises(ValueError, match="SOURCE is 'shuffled' in batches of 1; expected DATALOADER.*BATCH_SIZE 2 or more"):
        make("shuffled")(one, LABELS[:1], training=True)
    assert torch.equal(make("shuffled")(one, LABELS[:1]), one.features)


@pytest.mark.parametrize("kind", ["features", "logits", "label", "static", "shuffled"])
def test_dropout_makes_whole_samples_unknown_in_training_only(kind: str) -> None:
    n = 2000
    output = StyleOutput(torch.ones(n, WIDTH), torch.ones(n, C))
    source, labels = make(kind, dropout=0.25), torch.zeros(n, dtype=torch.long)
    style = source(output, labels, training=True, generator=torch.Generator().manual_seed(2))
    dropped = (style == 0).all(1)
    assert 0.2 < dropped.float().mean() < 0.3
    assert torch.equal(style[~dropped], source(output, labels)[~dropped])  # neither scaled nor partly zero
    assert not (source(output, labels) == 0).all(1).any()


def test_the_generator_decides(output: StyleOutput) -> None:
    source = make("shuffled", dropout=0.5)
    first, second = (source(output, LABELS, training=True, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["logits", "label"])
def test_sources_of_classes_are_refused_without_styles(kind: str) -> None:
    with pytest.raises(ValueError, match=f"STYLE.SOURCE is '{kind}', but the encoder tells no styles apart; expected features"):
        make(kind, n_classes=None)
    assert make("features", n_classes=None).width == WIDTH
    network = build_network("efficientnet_tiny", 1000)
    encoder = StyleEncoder(network, arch="efficientnet_tiny", class_names=None, view=StyleView(64, 64), sha256="")
    with pytest.raises(ValueError, match=r"the encoder of best.pt \(1000 classes, of ImageNet\) tells no styles apart"):
        StyleSource(kind, width=WIDTH, n_classes=None, encoder=describe_encoder(encoder, "best.pt"))


def test_problems_are_told_as_far_as_they_are_known() -> None:
    assert find_source_problems("label") == find_source_problems("label", n_styles=27, n_known=1) == []
    assert "no row of the data names its style; expected a column 'style'" in find_source_problems("label", n_known=0)[0]
    assert len(find_source_problems("label", n_styles=None, n_known=0)) == 2
    assert "batches of 1" in find_source_problems("shuffled", batch_size=1)[0]
    assert find_source_problems("shuffled", batch_size=2) == find_source_problems("features", n_known=0, batch_size=1) == []
    assert "SOURCE is 'mood'; expected one of features, logits" in find_source_problems("mood")[0]


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match=r"STYLE.DROPOUT is .*\[0, 1\)"):
        make("features", dropout=dropout)

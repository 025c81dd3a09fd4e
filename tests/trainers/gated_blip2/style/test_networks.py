"""The networks of style encoders: the counts of the specification, and a miniature that stays one."""

import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_b3

from trainers.gated_blip2.config import CHOICES
from trainers.gated_blip2.style.networks import ARCHITECTURES, build_network, feature_width, find_architecture, width_of


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("n_classes", "parameters"), [(None, 10_696_232), (28, 10_739_268), (1000, 12_233_232)])
def test_efficientnet_b3_has_the_counts_of_its_definition(n_classes: int | None, parameters: int) -> None:
    with torch.device("meta"):
        network = build_network("efficientnet_b3", n_classes)
        whole = efficientnet_b3(weights=None, num_classes=n_classes or 1)
    assert (count(network), feature_width(network)) == (parameters, 1536)
    tensors = network.state_dict()
    assert len(tensors) == (572 if n_classes is None else 574)
    assert tensors.keys() == {name for name in whole.state_dict() if n_classes or not name.startswith("classifier")}


def test_efficientnet_tiny_fits_into_a_megabyte_and_sees_64_px() -> None:
    network = build_network("efficientnet_tiny", 6).eval()
    assert 2 * sum(tensor.numel() for tensor in network.state_dict().values()) < 0.8 * 2**20  # as fp16
    view = ARCHITECTURES["efficientnet_tiny"].view
    assert network.features(torch.zeros(1, 3, view.crop_px, view.crop_px)).shape == (1, feature_width(network), 4, 4)
    assert network(torch.zeros(2, 3, view.crop_px, view.crop_px)).shape == (2, 6)


def test_a_network_without_classifier_returns_its_features() -> None:
    network = build_network("efficientnet_tiny", None).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, feature_width(network))


def test_the_configured_names_are_the_architectures() -> None:
    assert set(CHOICES["STYLE.ARCH"]) == set(ARCHITECTURES)


def test_unknown_architectures_are_refused_and_tf_is_explained() -> None:
    with pytest.raises(ValueError, match="STYLE.ARCH is 'resnet50'; expected one of efficientnet_b3, efficientnet_tiny$"):
        find_architecture("resnet50")
    with pytest.raises(ValueError, match="'tf_efficientnet_b3'.*TensorFlow's padding.*another network"):
        build_network("tf_efficientnet_b3", 27)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_width_is_known_without_building(arch: str) -> None:
    with torch.device("meta"):
        assert width_of(arch) == feature_width(build_network(arch, None))

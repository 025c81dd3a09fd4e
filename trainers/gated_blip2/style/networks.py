"""The networks a style encoder may be: torchvision's EfficientNets, at full size and in miniature.

EfficientNet: Tan and Le, ICML 2019, https://arxiv.org/abs/1905.11946.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models import efficientnet_b3
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

from trainers.gated_blip2.style.view import StyleView

ARCH_KEY = "TRAINER.GATEDBLIP2.STYLE.ARCH"
CLASSIFIER = "classifier.1"  # of torchvision: after the dropout


def _build_tiny(num_classes: int) -> EfficientNet:
    """Four short stages: full convolutions where 64 px still show textures, depthwise ones below 16 x 16."""
    # expand ratio, kernel, stride, channels in and out, blocks
    stages = [
        FusedMBConvConfig(1, 3, 1, 16, 16, 1),
        FusedMBConvConfig(4, 3, 2, 16, 32, 2),
        MBConvConfig(4, 3, 2, 32, 64, 3),
        MBConvConfig(4, 3, 2, 64, 96, 2),
    ]
    return EfficientNet(stages, dropout=0.1, stochastic_depth_prob=0.0, num_classes=num_classes, last_channel=192)


def _build_b3(num_classes: int) -> EfficientNet:
    return efficientnet_b3(weights=None, num_classes=num_classes)


@dataclass(frozen=True)
class Architecture:
    """A network and the view that suits it.

    Attributes:
        build: Makes it with random weights: `build(number of classes)`.
        view: Where the file with the weights names none.
    """

    build: Callable[[int], EfficientNet]
    view: StyleView


# The values of STYLE.ARCH.
ARCHITECTURES: dict[str, Architecture] = {
    "efficientnet_b3": Architecture(_build_b3, StyleView(resize_px=345, crop_px=300)),
    "efficientnet_tiny": Architecture(_build_tiny, StyleView(resize_px=64, crop_px=64)),
}


def find_architecture(arch: str) -> Architecture:
    """Return the architecture of a name.

    Raises:
        ValueError: If there is none of that name.
    """
    if arch not in ARCHITECTURES:
        hint = "; timm's variant with TensorFlow's padding and BatchNorm is another network" if arch.startswith("tf_") else ""
        raise ValueError(f"{ARCH_KEY} is {arch!r}; expected one of {', '.join(ARCHITECTURES)}{hint}")
    return ARCHITECTURES[arch]


def build_network(arch: str, n_classes: int | None) -> EfficientNet:
    """Build a network with random weights, in training mode.

    Args:
        arch: A name of `ARCHITECTURES`.
        n_classes: Rows of the classifier; None = no classifier, the output is the pooled features.
    Raises:
        ValueError: If there is no such architecture.
    """
    architecture = find_architecture(arch)
    network = architecture.build(1 if n_classes is None else n_classes)
    if n_classes is None:
        network.classifier = nn.Identity()
    return network


def width_of(arch: str) -> int:
    """Return the width of an architecture's pooled features; nothing is allocated for it."""
    with torch.device("meta"):
        return feature_width(build_network(arch, None))


def feature_width(network: EfficientNet) -> int:
    """Return the width of the pooled features, read from the last convolution."""
    return network.features[-1].out_channels

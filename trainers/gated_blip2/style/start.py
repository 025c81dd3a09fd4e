"""What the pre-training of a style encoder starts from: nothing, ImageNet's objects, or another encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.efficientnet import EfficientNet

from trainers.gated_blip2.style.fallback import IMAGENET_ARCH, fetch_imagenet
from trainers.gated_blip2.style.files import find_style_file, read_style_file
from trainers.gated_blip2.style.networks import CLASSIFIER, build_network
from trainers.gated_blip2.style.timm_layout import is_timm_layout, rename_timm
from trainers.stored_tensors import find_differences

logger = logging.getLogger(__name__)

KEY = "TRAINER.STYLEENCODERTRAINER.INIT (--init)"


def problems_with_init(init: str, arch: str) -> list[str]:
    """Return what is wrong with INIT, as far as it shows without reading weights.

    Args:
        init: `imagenet`, `random`, or a checkpoint as STYLE.CHECKPOINT names it.
        arch: The network to train.
    """
    if init == "imagenet" and arch != IMAGENET_ARCH:
        return [f"{KEY} is 'imagenet', but such weights are those of {IMAGENET_ARCH}, not {arch}; expected random or a file"]
    if init not in ("imagenet", "random") and find_style_file(init) is None:
        return [f"{KEY} is {init!r}; expected imagenet, random, or a file with an encoder's weights"]
    return []


def build_start(arch: str, init: str, n_classes: int) -> EfficientNet:
    """Build the network to train; a classifier for another number of classes than the stored one starts at random.

    Args:
        arch: The network.
        init: See `problems_with_init`.
        n_classes: What it is to tell apart.
    Raises:
        ValueError: If the file is unsafe, damaged, or of another architecture.
        OSError: If the ImageNet weights cannot be had.
    """
    network = build_network(arch, n_classes)
    if init == "random":
        return network
    if init == "imagenet":
        stored = fetch_imagenet(KEY)
    else:
        path = find_style_file(init)
        if path is None:
            raise ValueError("; ".join(problems_with_init(init, arch)))
        stored = dict(read_style_file(path).state)
        if is_timm_layout(stored) and arch == IMAGENET_ARCH:
            with torch.device("meta"):
                stored = rename_timm(stored, build_network(arch, None))
    _load(network, stored, f"{KEY} is {init!r}, which")
    return network


def _load(network: EfficientNet, stored: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    head = [f"{CLASSIFIER}.{kind}" for kind in ("weight", "bias")]
    kept = dict(stored)
    if any(name not in kept or kept[name].shape != own[name].shape for name in head):
        kept |= {name: own[name] for name in head}
        logger.info("The classifier of %s classes starts at random", len(own[head[0]]))
    differences = find_differences(kept, own)
    if differences:
        raise ValueError(f"{source} does not fit the network, {len(differences)} times: {'; '.join(differences[:3])}")
    network.load_state_dict(kept)

"""Encoders that know nothing of styles, for smoke tests without a checkpoint."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from torch import nn
from torchvision.models import EfficientNet_B3_Weights
from torchvision.models.efficientnet import EfficientNet

from clip_ext.style_names import wikiart_styles
from trainers.gated_blip2.config import CHOICES
from trainers.gated_blip2.style.files import KEY as CHECKPOINT_KEY
from trainers.gated_blip2.style.files import describe_missing_file
from trainers.gated_blip2.style.networks import ARCH_KEY, build_network

logger = logging.getLogger(__name__)

KEY = "TRAINER.GATEDBLIP2.STYLE.FALLBACK"
IMAGENET_ARCH = "efficientnet_b3"
_IMAGENET = EfficientNet_B3_Weights.IMAGENET1K_V1


def find_fallback_problems(arch: str, checkpoint: str, fallback: str, *, names_classes: bool) -> list[str]:
    """Return what is wrong with STYLE.FALLBACK, given that STYLE.CHECKPOINT is not there.

    Args:
        arch: STYLE.ARCH.
        checkpoint: STYLE.CHECKPOINT.
        fallback: STYLE.FALLBACK.
        names_classes: Whether STYLE.CLASSES_FILE is set.
    """
    if fallback not in CHOICES["STYLE.FALLBACK"]:
        return [f"{KEY} is {fallback!r}; expected one of {', '.join(CHOICES['STYLE.FALLBACK'])}"]
    if fallback == "none":
        return [describe_missing_file(checkpoint)]
    problems = []
    if fallback == "imagenet" and arch != IMAGENET_ARCH:
        problems.append(f"{KEY} is 'imagenet', but there are such weights for {ARCH_KEY} {IMAGENET_ARCH} only, not {arch!r}")
    if fallback == "imagenet" and names_classes:
        problems.append(f"{KEY} is 'imagenet', whose classes are no styles: empty TRAINER.GATEDBLIP2.STYLE.CLASSES_FILE")
    return problems


def build_fallback(
    arch: str, checkpoint: str, fallback: str, class_names: tuple[str, ...] | None
) -> tuple[EfficientNet, tuple[str, ...] | None]:
    """Build a network without a checkpoint, and say so loudly.

    Args:
        arch: STYLE.ARCH.
        checkpoint: STYLE.CHECKPOINT, for the message.
        fallback: `imagenet` or `random`.
        class_names: Of random weights; None = WikiArt's styles.
    Returns:
        The network, and its styles; None for ImageNet's, which are none.
    Raises:
        OSError: If the ImageNet weights cannot be had.
    """
    missing = f"{CHECKPOINT_KEY} {checkpoint!r} is not there" if checkpoint else f"{CHECKPOINT_KEY} is empty"
    what = "RANDOM weights" if fallback == "random" else "ImageNet weights, which know objects and no styles"
    logger.warning("%s: the style encoder gets %s (%s %s). For smoke tests only: its results mean nothing.",
                   missing, what, KEY, fallback)  # fmt: skip
    if fallback == "imagenet":
        network = build_network(arch, len(_IMAGENET.meta["categories"]))
        network.load_state_dict(fetch_imagenet(KEY))
        return network, None
    names = wikiart_styles().names if class_names is None else class_names
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same in every run: caches and adapters belong to one encoder
        return build_network(arch, len(names)), names


def hash_state(network: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all tensors, hexadecimal: the identity of what has no file."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fetch_imagenet(key: str) -> dict[str, Any]:
    """Return torchvision's weights of `IMAGENET_ARCH`, from its cache or the network.

    Args:
        key: Config key that asks for them, for the message.
    Raises:
        OSError: If they cannot be had.
    """
    try:
        return _IMAGENET.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged download
        raise OSError(
            f"{key} is 'imagenet', but torchvision's weights cannot be had: {error}; expected a network, its cache, or 'random'"
        ) from error

"""Build the training and the test transform from ``cfg.INPUT``; torchvision does the work.

Every object here is picklable, so that loader workers may be started with spawn or forkserver.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode

if TYPE_CHECKING:
    from PIL import Image
    from yacs.config import CfgNode

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",  # always part of the test transform; accepted because YAML files name it
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

_POLICIES = {
    "imagenet_policy": T.AutoAugmentPolicy.IMAGENET,
    "cifar10_policy": T.AutoAugmentPolicy.CIFAR10,
    "svhn_policy": T.AutoAugmentPolicy.SVHN,
}
_OTHER_DRAWS = "(torchvision's, draws differ from upstream Dassl's)"

Step = tuple[str, Callable]  # log line after "+ ", transform


class Random2DTranslation:
    """Resize to `height` x `width`; with probability `p` resize to 1.125 times that and crop at random.

    Args:
        height: Output height, pixels.
        width: Output width, pixels.
        p: Probability of the translation.
        interpolation: Interpolation of both resizes.
    """

    def __init__(
        self, height: int, width: int, p: float = 0.5, interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(F.resize(img, [height, width], self.interpolation), top, left, self.height, self.width)


class InstanceNormalization:
    """Give each channel of an image, (C, H, W), zero mean and unit standard deviation.

    Args:
        eps: Added to the standard deviation.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        mean = img.mean(dim=(1, 2), keepdim=True)
        std = img.flatten(1).std(dim=1).view(-1, 1, 1)
        return (img - mean) / (std + self.eps)


class Cutout:
    """Set random squares of an image, (C, H, W), to zero (DeVries and Taylor, arXiv 1708.04552).

    Args:
        n_holes: Number of squares; they may overlap and may cross the border.
        length: Side of a square, pixels.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        height, width = img.shape[1:]
        half = self.length // 2
        mask = torch.ones(height, width, dtype=img.dtype)
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            mask[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img * mask


class GaussianNoise:
    """Add Gaussian noise to a tensor image with probability `p`.

    Args:
        mean: Mean of the noise, in units of the (normalised) image.
        std: Standard deviation of the noise.
        p: Probability of adding it.
    """

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


class RandomMagnitudeAugment:
    """Apply `n` random operations of torchvision's RandAugment, each with probability `p` and a random magnitude.

    Args:
        n: Number of draws.
        p: Probability that a drawn operation is applied.
    """

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n = n
        self.p = p
        self.operation = T.RandAugment(num_ops=1)

    def __call__(self, img: Image.Image) -> Image.Image:
        for _ in range(self.n):
            if random.random() <= self.p:
                self.operation.magnitude = random.randrange(self.operation.num_magnitude_bins)
                img = self.operation(img)
        return img


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """Build the transform of one split and list its steps.

    Args:
        cfg: Full config; only ``cfg.INPUT`` is read.
        is_train: True for the training transform.
        choices: Names to use instead of ``INPUT.TRANSFORMS``.
    Returns:
        PIL image -> tensor (3, H, W), or None under ``INPUT.NO_TRANSFORM``.
    Raises:
        AssertionError: If a name is unknown (lists all of them).
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        assert choice in AVAI_CHOICES, f"INPUT.TRANSFORMS has {choice!r}; expected some of {', '.join(AVAI_CHOICES)}"
    if "normalize" not in choices:
        warnings.warn("INPUT.TRANSFORMS has no 'normalize': images stay in [0, 1]", stacklevel=1)
    print("Building transform_train" if is_train else "Building transform_test")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for line, _ in steps:
        print(f"+ {line}")
    return T.Compose([transform for _, transform in steps])


def _train_steps(node: CfgNode, choices: Sequence[str]) -> list[Step]:
    steps = _geometry_steps(node, choices) + _policy_steps(node, choices) + _colour_steps(node, choices)
    steps.append(("to torch tensor of range [0, 1]", T.ToTensor()))
    if "cutout" in choices:
        line = f"cutout (n_holes={node.CUTOUT_N}, length={node.CUTOUT_LEN})"
        steps.append((line, Cutout(node.CUTOUT_N, node.CUTOUT_LEN)))
    if "normalize" in choices:
        steps.append(_normalize_step(node))
    if "gaussian_noise" in choices:
        line = f"gaussian noise (mean={node.GN_MEAN}, std={node.GN_STD})"
        steps.append((line, GaussianNoise(node.GN_MEAN, node.GN_STD)))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _test_steps(node: CfgNode, choices: Sequence[str]) -> list[Step]:
    size, interpolation = node.SIZE, INTERPOLATION_MODES[node.INTERPOLATION]
    steps: list[Step] = [
        (f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=interpolation)),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    if "normalize" in choices:
        steps.append(_normalize_step(node))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _normalize_step(node: CfgNode) -> Step:
    line = f"normalization (mean={node.PIXEL_MEAN}, std={node.PIXEL_STD})"
    return line, T.Normalize(mean=node.PIXEL_MEAN, std=node.PIXEL_STD)


def _geometry_steps(node: CfgNode, choices: Sequence[str]) -> list[Step]:
    """Steps that give the image its size."""
    size, interpolation = node.SIZE, INTERPOLATION_MODES[node.INTERPOLATION]
    steps: list[Step] = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=interpolation)))
    if "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(size[0], size[1])))
    if "random_crop" in choices:
        line = f"random crop (padding = {node.CROP_PADDING})"
        steps.append((line, T.RandomCrop(size, padding=node.CROP_PADDING)))
    if "random_resized_crop" in choices:
        line = f"random resized crop (size={size}, scale={node.RRCROP_SCALE})"
        steps.append((line, T.RandomResizedCrop(size, scale=node.RRCROP_SCALE, interpolation=interpolation)))
    if "random_flip" in choices:
        steps.append(("random flip", T.RandomHorizontalFlip()))
    return steps


def _policy_steps(node: CfgNode, choices: Sequence[str]) -> list[Step]:
    """Learned and random augmentation policies."""
    steps: list[Step] = []
    for name, policy in _POLICIES.items():
        if name in choices:
            steps.append((f"{name.replace('_', ' ')} {_OTHER_DRAWS}", T.AutoAugment(policy)))
    n, m = node.RANDAUGMENT_N, node.RANDAUGMENT_M
    if "randaugment" in choices:
        steps.append((f"randaugment (n={n}, m={m}) {_OTHER_DRAWS}", T.RandAugment(num_ops=n, magnitude=m)))
    if "randaugment_fixmatch" in choices:
        steps.append((f"randaugment_fixmatch (n={n}) {_OTHER_DRAWS}", RandomMagnitudeAugment(n, p=1.0)))
    if "randaugment2" in choices:
        steps.append((f"randaugment2 (n={n}) {_OTHER_DRAWS}", RandomMagnitudeAugment(n)))
    return steps


def _colour_steps(node: CfgNode, choices: Sequence[str]) -> list[Step]:
    steps: list[Step] = []
    if "colorjitter" in choices:
        b, c, s, h = node.COLORJITTER_B, node.COLORJITTER_C, node.COLORJITTER_S, node.COLORJITTER_H
        line = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
        steps.append((line, T.ColorJitter(brightness=b, contrast=c, saturation=s, hue=h)))
    if "randomgrayscale" in choices:
        steps.append(("random gray scale", T.RandomGrayscale(p=node.RGS_P)))
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(node.GB_K)], p=node.GB_P)
        steps.append((f"gaussian blur (kernel={node.GB_K})", blur))
    return steps

"""The style encoder: a frozen EfficientNet that says what a picture looks like, not what is on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet

from trainers.gated_blip2.style.classes import name_classes, read_classes_file
from trainers.gated_blip2.style.fallback import build_fallback, find_fallback_problems, hash_state
from trainers.gated_blip2.style.files import StyleFile, find_style_file, read_style_file
from trainers.gated_blip2.style.networks import ARCH_KEY, CLASSIFIER, build_network, feature_width, find_architecture
from trainers.gated_blip2.style.timm_layout import ARCH as TIMM_ARCH
from trainers.gated_blip2.style.timm_layout import is_timm_layout, rename_timm
from trainers.gated_blip2.style.view import StyleView
from trainers.stored_tensors import find_differences

logger = logging.getLogger(__name__)

SHOWN = 6  # differences in a message


@dataclass(frozen=True)
class StyleOutput:
    """What a style encoder says of a batch.

    Attributes:
        features: Pooled, (B, width), fp32.
        logits: Of the styles, (B, C), fp32; None if the encoder knows no styles.
    """

    features: Tensor
    logits: Tensor | None


class StyleEncoder(nn.Module):
    """A frozen network in evaluation mode, whatever mode is asked for: neither weights nor BatchNorm statistics ever change.

    Args:
        network: With its classifier, if it has one; one that tells no styles apart is dropped.
        arch: A name of `ARCHITECTURES`.
        class_names: The styles, in the order of the classes; None = features only.
        view: Its preprocessing.
        sha256: Of its file, or of its tensors where there is none.
    Attributes:
        n_classes: Of the classifier that it came with; None = it had none.
        width: Of the features.
    """

    def __init__(
        self, network: EfficientNet, *, arch: str, class_names: tuple[str, ...] | None, view: StyleView, sha256: str
    ) -> None:
        super().__init__()
        classifier = network.classifier if isinstance(network.classifier, nn.Sequential) else None
        self.n_classes: int | None = None if classifier is None else classifier[-1].out_features
        self.features, self.pool = network.features, network.avgpool
        self.classifier = classifier[-1] if classifier is not None and class_names is not None else None
        self.arch, self.class_names, self.view, self.sha256 = arch, class_names, view, sha256
        self.width = feature_width(network)
        self.requires_grad_(False)
        self.train(False)

    @property
    def has_styles(self) -> bool:
        """Whether its classes are styles, so that it gives logits."""
        return self.class_names is not None

    def train(self, mode: bool = True) -> StyleEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> StyleOutput:
        """Encode pictures, in fp32 also inside autocast.

        Args:
            images: After `view.transform()`, (B, 3, s, s).
        """
        with torch.autocast(device_type=images.device.type, enabled=False):
            features = torch.flatten(self.pool(self.features(images.float())), 1)
            return StyleOutput(features, None if self.classifier is None else self.classifier(features))


def load_style_encoder(
    arch: str, checkpoint: str, *, classes_file: str = "", fallback: str = "none", device: torch.device | str = "cpu"
) -> StyleEncoder:
    """Load a style encoder, strictly: every tensor is there, and none is left over.

    Args:
        arch: STYLE.ARCH.
        checkpoint: STYLE.CHECKPOINT: a file, a folder with `style_encoder.safetensors`, or a shipped name.
        classes_file: STYLE.CLASSES_FILE; "" = the JSON beside the weights or the number of classes says it.
        fallback: STYLE.FALLBACK: what to take if there is no checkpoint.
        device: Where it will work.
    Raises:
        FileNotFoundError: If there is no checkpoint and no fallback, or no classes file.
        ValueError: If the file is unsafe, damaged, of another architecture, or its classes have no names.
        OSError: If the ImageNet weights cannot be had.
    """
    find_architecture(arch)
    path = find_style_file(checkpoint)
    if path is None:
        encoder = _load_fallback(arch, checkpoint, classes_file, fallback)
    else:
        encoder = _load_file(arch, read_style_file(path), classes_file)
    styles = f"{len(encoder.class_names)} styles" if encoder.class_names else "no styles, features only"
    source = fallback if path is None else path
    logger.info("Style encoder %s from %s: %s, width %d, sha256 %s", arch, source, styles, encoder.width, encoder.sha256)
    return encoder.to(device)


def find_checkpoint_problems(arch: str, checkpoint: str, *, classes_file: str = "", fallback: str = "none") -> list[str]:
    """Return what is wrong with the STYLE keys as far as it shows without reading weights; for `check_cfg`."""
    problems = []
    try:
        find_architecture(arch)
    except ValueError as error:
        problems.append(str(error))
    if find_style_file(checkpoint) is None:
        problems += find_fallback_problems(arch, checkpoint, fallback, names_classes=bool(classes_file))
    if classes_file:
        try:
            read_classes_file(classes_file)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    return problems


def _load_file(arch: str, file: StyleFile, classes_file: str) -> StyleEncoder:
    """Build the network that a file's tensors ask for, and load them."""
    card = file.card
    if card is not None and card.arch != arch:
        raise ValueError(f"{ARCH_KEY} is {arch!r}, but {file.path} is {card.arch}: set {ARCH_KEY} to that")
    listed = read_classes_file(classes_file) if classes_file else None
    state = dict(file.state)
    if is_timm_layout(state):
        state = _rename(state, arch, str(file.path))
    n_classes = _count_classes(state, str(file.path))
    names = name_classes(n_classes, listed=listed, stored=card.class_names if card else None, source=str(file.path))
    with torch.device("meta"):  # every tensor comes from the file
        network = build_network(arch, n_classes)
    _load_strictly(network, state, f"{ARCH_KEY} is {arch!r}, and {file.path}")
    view = card.view if card else find_architecture(arch).view
    return StyleEncoder(network, arch=arch, class_names=names, view=view, sha256=file.sha256)


def _load_fallback(arch: str, checkpoint: str, classes_file: str, fallback: str) -> StyleEncoder:
    """Build an encoder that knows nothing of styles."""
    problems = find_fallback_problems(arch, checkpoint, fallback, names_classes=bool(classes_file))
    if problems:
        raise (FileNotFoundError if fallback == "none" else ValueError)("; ".join(problems))
    listed = read_classes_file(classes_file) if classes_file else None
    network, names = build_fallback(arch, checkpoint, fallback, listed)
    view = find_architecture(arch).view
    return StyleEncoder(network, arch=arch, class_names=names, view=view, sha256=hash_state(network))


def _rename(state: dict[str, Tensor], arch: str, source: str) -> dict[str, Tensor]:
    """Return timm's tensors under torchvision's names."""
    if arch != TIMM_ARCH:
        raise ValueError(f"{source} has timm's layout, which is known for {TIMM_ARCH} only, but {ARCH_KEY} is {arch!r}")
    logger.info("%s: names of timm's %s, loaded by position", source, TIMM_ARCH)
    with torch.device("meta"):
        return rename_timm(state, build_network(arch, None))


def _count_classes(state: dict[str, Tensor], source: str) -> int | None:
    """Return the rows of the classifier; None if there is none."""
    weight = state.get(f"{CLASSIFIER}.weight")
    if weight is None:
        return None
    if weight.ndim != 2 or not len(weight):
        raise ValueError(f"{source}: {CLASSIFIER}.weight has the shape {tuple(weight.shape)}; expected (classes, width)")
    return len(weight)


def _load_strictly(network: EfficientNet, state: dict[str, Tensor], source: str) -> None:
    """Load every tensor, or none.

    Raises:
        ValueError: If names or shapes differ (lists the first ones).
    """
    differences = find_differences(state, network.state_dict())
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise ValueError(f"{source} does not fit it: {'; '.join(differences[:SHOWN])}{more}")
    network.to_empty(device="cpu").load_state_dict(state, strict=True)

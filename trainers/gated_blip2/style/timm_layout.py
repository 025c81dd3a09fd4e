"""timm's `efficientnet_b3` in torchvision's names.

The two networks are the same, operation by operation; their tensors come in the same order under other names. So a name is
found by its position in the module structure, never by its place in a file (safetensors sorts by name). `tf_efficientnet_b3`
has the same names and shapes, but pads as TensorFlow does and has another epsilon in its BatchNorms: only a name gives it away.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet, MBConv

from trainers.gated_blip2.style.networks import CLASSIFIER

ARCH = "efficientnet_b3"
STEM = "conv_stem.weight"
TF_NAME = re.compile(r"tf_efficientnet[\w.]*")
MAX_DEPTH = 4  # of values in a checkpoint that are searched for a name

# Modules of a block in order: without an expansion, and with one.
_PLAIN_BLOCK = ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2")
_EXPANDING_BLOCK = ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3")


def is_timm_layout(state: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors are named as timm names them."""
    return STEM in state


def timm_names(network: EfficientNet) -> dict[str, str]:
    """Return timm's name -> torchvision's name of each tensor of a network, in order.

    Args:
        network: Of MBConv blocks only; it may be on the meta device, and have no classifier.
    """
    modules = dict(zip(_timm_modules(network), _own_modules(network.features), strict=True))
    names = {
        f"{timm}.{tensor}": f"features.{own}.{tensor}"
        for timm, own in modules.items()
        for tensor in network.features.get_submodule(own).state_dict()
    }
    return names | {f"classifier.{kind}": f"{CLASSIFIER}.{kind}" for kind in ("weight", "bias")}


def rename_timm(state: Mapping[str, Tensor], network: EfficientNet) -> dict[str, Tensor]:
    """Return tensors under torchvision's names; a name that timm's network does not have stays, for strict loading to list."""
    names = timm_names(network)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def find_tf_name(content: Any, path: Path) -> str | None:
    """Return the name that says that weights are of a `tf_efficientnet`; None if nothing does.

    Args:
        content: What the file holds; its texts are looked at (architecture, arguments).
        path: The file: its name, its folder's, and the hub's `config.json` beside it.
    """
    config = path.with_name("config.json")
    stored = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    texts = [*_texts_of(content), path.name, path.absolute().parent.name, *TF_NAME.findall(stored)]
    return next((text for text in texts if TF_NAME.search(text)), None)


def _timm_modules(network: EfficientNet) -> Iterator[str]:
    """Yield timm's names of the modules with tensors, in order, without the classifier."""
    yield from ("conv_stem", "bn1")
    for stage, blocks in enumerate(list(network.features)[1:-1]):
        for number, block in enumerate(blocks):
            assert isinstance(block, MBConv)
            expands = len(block.block) == 4
            yield from (f"blocks.{stage}.{number}.{name}" for name in (_EXPANDING_BLOCK if expands else _PLAIN_BLOCK))
    yield from ("conv_head", "bn2")


def _own_modules(features: nn.Sequential) -> Iterator[str]:
    """Yield the names of the modules with tensors of their own, in order."""
    return (name for name, module in features.named_modules() if not list(module.children()) and module.state_dict())


def _texts_of(value: Any, depth: int = 0) -> list[str]:
    """Return the texts in a value: keys are no texts, tensors hold none."""
    if isinstance(value, str):
        return [value]
    if depth == MAX_DEPTH:
        return []
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts_of(item, depth + 1)]
    return []

"""Weights of a BLIP-2: built without memory, then put in place one by one in the type that each part keeps.

Nothing is ever held in fp32 that is not to stay so, whatever device it goes to; parts that train are read in full precision.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerModel

from trainers.stored_tensors import find_differences

logger = logging.getLogger(__name__)

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "amp": torch.float16, "fp16": torch.float16}
DECODER_LAYERS = "language_model.model.decoder.layers"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.decoder.embed_tokens.weight"  # one tensor, two names
TEXT_BRANCH = re.compile(r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.")  # what a query-only pass never runs
RANDOM_STD = 0.02


@dataclass(frozen=True)
class PartDtypes:
    """Which type each part of the model is stored in.

    Query tokens and language projection are fp32 always: most presets train them, and in the others autocast rounds them alike.

    Attributes:
        compute: Of vision tower, language model, and a Q-Former of which nothing trains.
        trains_qformer: Whether something of the Q-Former trains, so that all of it is fp32.
        trains_post_ln: Whether the vision tower's last LayerNorm trains.
    """

    compute: torch.dtype
    trains_qformer: bool = False
    trains_post_ln: bool = False

    def of(self, name: str) -> torch.dtype:
        """Return the type of the tensor of that name."""
        trains = (
            name.startswith(("query_tokens", "language_projection."))
            or (self.trains_qformer and name.startswith("qformer."))
            or (self.trains_post_ln and name.startswith("vision_model.post_layernorm."))
        )
        return torch.float32 if trains else self.compute


class WeightSource(Protocol):
    """Where values come from."""

    def fill(self, name: str, tensor: Tensor) -> None:
        """Write the values of a tensor."""


class RandomWeights:
    """Seeded random weights: matrices of a small spread, scales of 1, biases of 0."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def fill(self, name: str, tensor: Tensor) -> None:
        """See `WeightSource`."""
        if tensor.ndim > 1:
            tensor.normal_(std=RANDOM_STD, generator=self._generator)
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)


class StoredWeights:
    """Weights in safetensors files. The Q-Former's text branch, which plain BLIP-2 lacks, may be missing: it is random then.

    Args:
        files: Of one model.
        branch: Source of a missing text branch.
    """

    def __init__(self, files: Sequence[Path], branch: WeightSource) -> None:
        self._files, self._branch = {}, branch
        for file in files:
            content = safe_open(file, "pt")
            self._files |= dict.fromkeys(content.keys(), content)

    def find_problems(self, model: nn.Module) -> list[str]:
        """Return one message per missing or unexpected tensor, and per wrong shape."""
        stored = {name: _Shape(tuple(content.get_slice(name).get_shape())) for name, content in self._files.items()}
        expected = dict(model.named_parameters())  # of one tensor under two names, the first
        for name in (HEAD, *[name for name in stored if name.endswith("position_ids")]):
            if name not in expected:
                stored.pop(name, None)
        if not any(TEXT_BRANCH.match(name) for name in stored):
            expected = {name: tensor for name, tensor in expected.items() if not TEXT_BRANCH.match(name)}
        return find_differences(stored, expected)

    def fill(self, name: str, tensor: Tensor) -> None:
        """See `WeightSource`."""
        if name in self._files:
            tensor.copy_(self._files[name].get_tensor(name))
        else:
            self._branch.fill(name, tensor)


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def build_empty(config: Blip2Config, attn: str = "sdpa") -> Blip2ForConditionalGeneration:
    """Build a BLIP-2 on the meta device, which takes no memory.

    Args:
        config: Its shapes.
        attn: Attention of all parts, `sdpa` or `eager`; the Q-Former keeps eager where transformers has nothing else for it.
    """
    qformer = attn if getattr(Blip2QFormerModel, "_supports_sdpa", False) else "eager"
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            config, attn_implementation={"vision_config": attn, "text_config": attn, "qformer_config": qformer}
        )


@torch.no_grad()
def put_weights(
    model: Blip2ForConditionalGeneration,
    source: WeightSource,
    *,
    dtypes: PartDtypes,
    device: torch.device,
    finish_layer: Callable[[nn.Module], None] | None = None,
) -> None:
    """Give an empty model its weights, frozen, and evaluation mode.

    Args:
        model: From `build_empty`.
        source: Of the values.
        dtypes: Of the parts.
        device: Where they go; `meta`: shapes and types only.
        finish_layer: Called with each layer of the language model before the next one gets its weights.
    Raises:
        RuntimeError: If the model has buffers that are part of no file, which this package does not know how to fill.
    """
    unknown = [name for name, _ in model.named_buffers()]
    if unknown:
        raise RuntimeError(f"{type(model).__name__} of this transformers has buffers that stay empty: {', '.join(unknown)}")
    for number, layer in enumerate(model.language_model.model.decoder.layers):
        _put(layer, f"{DECODER_LAYERS}.{number}", source, dtypes, device)
        if finish_layer is not None:
            finish_layer(layer)
    _put(model, "", source, dtypes, device)
    model.tie_weights()
    model.eval()


def _put(root: nn.Module, prefix: str, source: WeightSource, dtypes: PartDtypes, device: torch.device) -> None:
    for place, module in root.named_modules(prefix=prefix):
        for key, empty in module._parameters.items():
            name = f"{place}.{key}" if place else key
            # The head shares the embedding's tensor and is tied to it in the end.
            if empty is None or not empty.is_meta or name == HEAD:
                continue
            tensor = torch.empty(empty.shape, dtype=dtypes.of(name), device=device)
            source.fill(name, tensor)
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)


def count_elements(tensors: Iterable[Tensor]) -> int:
    """Return how many numbers some tensors hold together."""
    return sum(tensor.numel() for tensor in tensors)

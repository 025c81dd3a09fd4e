"""How many parameters a BLIP-2 with gates has, and how many of them train; shapes are enough, tensors may be on `meta`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainers.gated_blip2.gates import Conditioner
from trainers.gated_blip2.presets import Preset, dead_by_design, trainable_parts

__all__ = ["PARTS", "Counts", "count_model", "count_parts", "part_of"]

# Of the base model, in its order; the text branch is the part of the Q-Former that no query-only pass executes.
PARTS = ("vision_model", "ln_vision", "query_tokens", "qformer", "text_branch", "language_projection", "language_model")
TEXT_BRANCH_MODULES = ("intermediate", "output")
# Of the figures that the original recipe was described with.
REFERENCE_VOCABULARY = 50_272


@dataclass(frozen=True)
class Counts:
    """Parameters of one preset.

    Attributes:
        preset: Its name.
        parts: As built, trained or not: parts of the base model, then what is added to it. Without the classifier of the
            style encoder.
        groups: What trains and is reached by the loss, by group.
        dead: What counts as trained but is never reached: name -> numbers.
        style_head: The style encoder's classifier.
        zero_biases: Biases of the vision tower's keys, which are zero in every BLIP-2 and have no effect under softmax.
        padding_rows: Numbers in rows of the vocabulary beyond that of OPT.
    """

    preset: str
    parts: Mapping[str, int]
    groups: Mapping[str, int]
    dead: Mapping[str, int]
    style_head: int
    zero_biases: int
    padding_rows: int

    @property
    def as_built(self) -> int:
        """All parameters; without the style encoder's classifier."""
        return sum(self.parts.values())

    @property
    def reference(self) -> int:
        """`as_built` as the original recipe counted: without zero biases and vocabulary padding."""
        return self.as_built - self.zero_biases - self.padding_rows

    @property
    def live(self) -> int:
        """What trains and is reached by the loss."""
        return sum(self.groups.values())

    @property
    def n_dead(self) -> int:
        return sum(self.dead.values())

    @property
    def trainable(self) -> int:
        """What trains as declared, dead by design included."""
        return self.live + self.n_dead

    @property
    def share(self) -> float:
        """`trainable` of `reference`, percent."""
        return 100 * self.trainable / self.reference

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON's types; of the dead, their number and that of their tensors."""
        return {
            "preset": self.preset, "parts": dict(self.parts), "groups": dict(self.groups), "as_built": self.as_built,
            "zero_biases": self.zero_biases, "padding_rows": self.padding_rows, "reference": self.reference,
            "trainable": self.trainable, "live": self.live, "dead": self.n_dead, "dead_tensors": len(self.dead),
            "share_percent": self.share, "style_head": self.style_head,
        }  # fmt: skip

    def describe(self) -> str:
        """Return the itemised lines."""
        lines = [("trainable", self.trainable, f"{self.share:.2f} % of the reference total")]
        lines += [(f"  {group}", number, "") for group, number in self.groups.items()]
        if self.dead:
            lines += [("live", self.live, ""), ("dead by design", self.n_dead, f"{len(self.dead)} tensors")]
        lines += [(f"  {part}", number, "") for part, number in self.parts.items()]
        lines += [("as built", self.as_built, "")]
        lines += [("key biases that are zero", -self.zero_biases, ""), ("vocabulary padding", -self.padding_rows, "")]
        lines += [("reference total", self.reference, "")]
        if self.style_head:
            lines += [("style classifier, outside", self.style_head, "")]
        return "\n".join(f"{name:<28}{number:>16,}  {note}".rstrip() for name, number, note in lines)


def count_model(
    preset: Preset,
    blip2: nn.Module,
    conditioner: Conditioner | None = None,
    *,
    style_source: nn.Module | None = None,
    style_encoder: nn.Module | None = None,
) -> Counts:
    """Count a model as a preset trains it.

    Args:
        preset: One of `PRESETS`.
        blip2: transformers' `Blip2ForConditionalGeneration`, with its text branch if the preset has one.
        conditioner: As `build_conditioner` made it.
        style_source: May hold a static style vector.
        style_encoder: torchvision's EfficientNet, or a module that holds one; what its `classifier` holds is counted apart.
    Raises:
        ValueError: If model and preset do not fit.
    """
    added = {"conditioner": conditioner, "style_source": style_source}
    parts = count_parts(blip2) | {name: _count(module.parameters()) for name, module in added.items() if module is not None}
    head = 0
    if style_encoder is not None:
        head = _count(weight for name, weight in style_encoder.named_parameters() if "classifier" in name.split("."))
        parts["style_encoder"] = _count(style_encoder.parameters()) - head
    groups = trainable_parts(preset, blip2, conditioner, style_source)
    of_base = dict(blip2.named_parameters())
    return Counts(
        preset.name,
        {name: number for name, number in parts.items() if number},
        {group: _count(parameter for _, parameter in pairs) for group, pairs in groups.items()},
        {name: numbers_of(of_base[name]) for name in dead_by_design(preset, blip2)},
        head,
        _zero_biases(blip2),
        _padding_rows(blip2),
    )


def count_parts(blip2: nn.Module) -> dict[str, int]:
    """Return part -> parameters of a BLIP-2; tied ones count once."""
    found = dict.fromkeys(PARTS, 0)
    for name, parameter in blip2.named_parameters():
        found[part_of(name)] += numbers_of(parameter)
    return found


def part_of(name: str) -> str:
    """Return the part of `PARTS` that a parameter of a BLIP-2 belongs to.

    Args:
        name: As in transformers' state dict, for example `qformer.encoder.layer.0.output.dense.weight`.
    """
    first, *rest = name.split(".")
    if first == "vision_model" and rest[0] == "post_layernorm":
        return "ln_vision"
    if first == "qformer" and rest[:2] == ["encoder", "layer"] and rest[3] in TEXT_BRANCH_MODULES:
        return "text_branch"
    return first


def numbers_of(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter stands for; a 4-bit weight packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _count(parameters: Any) -> int:
    return sum(numbers_of(parameter) for parameter in parameters)


def _zero_biases(blip2: nn.Module) -> int:
    """Queries, keys and values of a block share one bias, of which the keys own a third."""
    layers: Sequence[nn.Module] = blip2.vision_model.encoder.layers
    return sum(layer.self_attn.qkv.bias.numel() // 3 for layer in layers if layer.self_attn.qkv.bias is not None)


def _padding_rows(blip2: nn.Module) -> int:
    rows, width = blip2.language_model.get_input_embeddings().weight.shape
    return max(rows - REFERENCE_VOCABULARY, 0) * width

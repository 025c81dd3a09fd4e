"""What trains: the eight presets, their parameters by group, and the learning rate and decay of each group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from trainers.gated_blip2.gate_hooks import cross_attention_layers, resolve_layers
from trainers.gated_blip2.gates import NODE, Conditioner, GateOptions, Parts, StyleGate
from trainers.gated_blip2.original import OriginalConditioner
from trainers.parameter_groups import ParameterGroup

__all__ = [
    "PRESETS",
    "Preset",
    "build_conditioner",
    "count_parameters",
    "dead_by_design",
    "lr_multiplier",
    "parameter_groups",
    "trainable_parts",
]

CONDITIONER_GROUPS = ("gate_trunk", "gate_heads", "prompt_mapper", "style_projection")
PRETRAINED_GROUPS = ("language_projection", "query_tokens", "cross_attention", "qformer", "ln_vision")
PRETRAINED_LR_MULT = 0.1  # of the groups that BLIP-2's weights come with
NO_DECAY_SUFFIX = "_no_decay"

_BRIDGE = ("language_projection", "query_tokens")
_GATES = ("gate_trunk", "gate_heads", "style_source")
_ORIGINAL = ("gate_trunk", "gate_heads", "prompt_mapper", "style_projection", "style_source", *_BRIDGE, "qformer", "ln_vision")


@dataclass(frozen=True)
class Preset:
    """What a preset builds and trains.

    Attributes:
        name: `PRESET`.
        conditioner: `none`, `gates` (`StyleGate`) or `original` (`OriginalConditioner`).
        trains: Names of the groups, in the optimizer's order; one that the model has nothing for is left out.
        text_branch: The Q-Former is built with its text branch, which no query-only pass executes.
        post_ln: The ViT's post-LayerNorm trains, so image tokens are taken and cached before it.
    """

    name: str
    conditioner: str
    trains: tuple[str, ...]
    text_branch: bool = False
    post_ln: bool = False

    @property
    def trains_qformer(self) -> bool:
        """Whether anything inside the Q-Former trains, so that it is held in fp32."""
        return "qformer" in self.trains or "cross_attention" in self.trains


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("frozen", "none", ()),
        Preset("projection", "none", _BRIDGE),
        Preset("gates", "gates", _GATES),
        Preset("gates_proj", "gates", (*_GATES, *_BRIDGE)),
        Preset("gates_xattn", "gates", (*_GATES, *_BRIDGE, "cross_attention")),
        Preset("qformer", "gates", (*_GATES, *_BRIDGE, "qformer")),
        Preset("original_live", "original", _ORIGINAL, post_ln=True),
        Preset("original", "original", _ORIGINAL, text_branch=True, post_ln=True),
    )
}


def build_conditioner(
    preset: Preset, blip2: nn.Module, style_width: int, options: GateOptions | None = None
) -> StyleGate | OriginalConditioner | None:
    """Build the gates that a preset asks for, with the widths of a model; None without gates.

    Args:
        preset: One of `PRESETS`.
        blip2: transformers' `Blip2ForConditionalGeneration`; only its shapes count.
        style_width: W, of the style source.
        options: `GATE.*`, None = the defaults; the presets `original` and `original_live` follow `layers` and `init_std` only.
    Raises:
        ValueError: If an option is not allowed or a layer has no cross-attention.
    """
    if preset.conditioner == "none":
        return None
    options, config = options or GateOptions(), blip2.qformer.config
    shape = {
        "layers": resolve_layers(options.layers, blip2.qformer),
        "width": config.hidden_size,
        "n_heads": config.num_attention_heads,
    }
    question_width = blip2.language_model.get_input_embeddings().embedding_dim
    if preset.conditioner == "original":
        return OriginalConditioner(style_width, question_width=question_width, init_std=options.init_std, **shape)
    return StyleGate(style_width, options=options, question_width=question_width if options.question else 0, **shape)


def trainable_parts(
    preset: Preset, blip2: nn.Module, conditioner: Conditioner | None, style_source: nn.Module | None = None
) -> Parts:
    """Name what trains and can be reached by the loss; nothing is frozen or thawed.

    Args:
        preset: One of `PRESETS`.
        blip2: transformers' `Blip2ForConditionalGeneration`.
        conditioner: As `build_conditioner` made it.
        style_source: Its parameters train beside a conditioner (a static style vector has one).
    Returns:
        Group -> (name, parameter) pairs in the preset's order, without empty groups. Names are those of BLIP-2's state dict,
        or start with `conditioner.` or `style_source.`.
    Raises:
        ValueError: If model and preset do not fit.
    """
    _check_fit(preset, blip2, conditioner)
    dead = set(_text_branch(blip2))
    inside = conditioner.parts() if conditioner is not None else {}
    available: dict[str, Iterable[tuple[str, nn.Parameter]]] = {
        **{group: _prefixed("conditioner", pairs) for group, pairs in inside.items()},
        "style_source": [] if style_source is None else _prefixed("style_source", style_source.named_parameters()),
        "language_projection": _prefixed("language_projection", blip2.language_projection.named_parameters()),
        "query_tokens": [("query_tokens", blip2.query_tokens)],
        "cross_attention": _cross_attention(blip2),
        "qformer": [pair for pair in _prefixed("qformer", blip2.qformer.named_parameters()) if pair[0] not in dead],
        "ln_vision": _prefixed("vision_model.post_layernorm", blip2.vision_model.post_layernorm.named_parameters()),
    }
    found = {group: list(available[group]) for group in preset.trains}
    return {group: pairs for group, pairs in found.items() if pairs}


def dead_by_design(preset: Preset, blip2: nn.Module) -> list[str]:
    """Return the names of what counts as trained but never gets a gradient: the Q-Former's text branch in `original`."""
    return _text_branch(blip2) if preset.text_branch else []


def parameter_groups(parts: Mapping[str, Sequence[tuple[str, nn.Parameter]]], weight_decay: float) -> list[ParameterGroup]:
    """Return what the optimizer needs.

    Norms, biases, queries and the static style vector do not decay: a group that has such numbers beside others is two,
    `NAME` and `NAME_no_decay`.

    Args:
        parts: As from `trainable_parts`.
        weight_decay: `OPTIM.WEIGHT_DECAY`.
    """
    groups = []
    for group, pairs in parts.items():
        decaying = [parameter for name, parameter in pairs if _decays(name, parameter)]
        others = [parameter for name, parameter in pairs if not _decays(name, parameter)]
        if decaying:
            groups.append(ParameterGroup(group, decaying, lr_multiplier(group), weight_decay))
        if others:
            groups.append(ParameterGroup(f"{group}{NO_DECAY_SUFFIX}" if decaying else group, others, lr_multiplier(group), 0.0))
    return groups


def lr_multiplier(group: str) -> float:
    """Return a group's share of `OPTIM.LR`: 1 for new modules, 0.1 for those that come with BLIP-2's weights."""
    return PRETRAINED_LR_MULT if group in PRETRAINED_GROUPS else 1.0


def count_parameters(parts: Mapping[str, Sequence[tuple[str, nn.Parameter]]]) -> dict[str, int]:
    """Return the number of parameters of each group."""
    return {group: sum(parameter.numel() for _, parameter in pairs) for group, pairs in parts.items()}


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Weights of linear maps decay; norms, biases and single vectors have one dimension, and queries are no map."""
    return parameter.ndim > 1 and name != "query_tokens"


def _check_fit(preset: Preset, blip2: nn.Module, conditioner: Conditioner | None) -> None:
    """Raise ValueError if a preset lacks its gates or its text branch, or has gates that it does not train."""
    problems = []
    found = set() if conditioner is None else set(conditioner.parts())
    if found != set(preset.trains) & set(CONDITIONER_GROUPS):
        given = "none" if conditioner is None else type(conditioner).__name__
        problems.append(f"its conditioner is {given}; expected that of build_conditioner ({preset.conditioner!r})")
    if preset.text_branch and not _text_branch(blip2):
        problems.append("the Q-Former has no text branch; load it with text_branch on (use_qformer_text_input)")
    if problems:
        raise ValueError(f"{NODE}.PRESET is {preset.name!r}, but {'; '.join(problems)}")


def _prefixed(prefix: str, pairs: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    return [(f"{prefix}.{name}", parameter) for name, parameter in pairs]


def _cross_attention(blip2: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The blocks with queries, keys, values, output map and its norm."""
    numbers = [layer - 1 for layer in cross_attention_layers(blip2.qformer)]
    blocks = {f"qformer.encoder.layer.{number}": blip2.qformer.encoder.layer[number] for number in numbers}
    return [
        pair
        for name, layer in blocks.items()
        for pair in _prefixed(f"{name}.crossattention", layer.crossattention.named_parameters())
    ]


def _text_branch(blip2: nn.Module) -> list[str]:
    """Names of the Q-Former's feed-forward layers for text; the query branch has its own."""
    return [
        f"qformer.encoder.layer.{index}.{part}.{name}"
        for index, layer in enumerate(blip2.qformer.encoder.layer)
        for part in ("intermediate", "output")
        if hasattr(layer, part)
        for name, _ in getattr(layer, part).named_parameters()
    ]

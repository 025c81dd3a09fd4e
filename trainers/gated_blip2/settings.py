"""From the config to plain arguments: what each part of the room is built with."""

from __future__ import annotations

from yacs.config import CfgNode

from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.presets import PRESETS

# Dassl's default of INPUT.SIZE, px: here it stands for the size that the model's own processor names.
OWN_SIZE = 224


def input_size(cfg: CfgNode) -> int | None:
    """Return the side in px that `INPUT.SIZE` asks for; None: the model's own."""
    side = cfg.INPUT.SIZE[0]
    return None if side == OWN_SIZE else side


def gate_options(node: CfgNode) -> GateOptions:
    """Return how gates are built."""
    gate = node.GATE
    return GateOptions(
        hidden=gate.HIDDEN,
        layers=tuple(gate.LAYERS),
        sites=gate.SITES,
        granularity=gate.GRANULARITY,
        phi=gate.PHI,
        beta_v=gate.BETA_V,
        question=gate.QUESTION,
        init_std=gate.INIT_STD,
    )


def has_gates(node: CfgNode) -> bool:
    """Whether style reaches the Q-Former at all; if not, no style encoder is built."""
    return PRESETS[node.PRESET].conditioner != "none"


def needs_style_encoder(node: CfgNode) -> bool:
    """Whether nothing works without a style encoder: with `STYLE.SOURCE zeros` every style is unknown anyway."""
    return has_gates(node) and node.STYLE.SOURCE != "zeros"

"""What trains, and how: the groups that a trainer declares."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from dassl.optim import build_optimizer
from torch import nn
from yacs.config import CfgNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        name: For the log and the optimizer's state.
        parameters: Leaves, each in one group only.
        lr_mult: Multiplier of `OPTIM.LR`.
        weight_decay: Absolute.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr_mult: float
    weight_decay: float


class Trainables(nn.Module):
    """Some parameters of a model, by reference and under the names they have there; its state dict holds nothing else.

    Args:
        parts: Name of a group -> (name, parameter) pairs.
    """

    def __init__(self, parts: Mapping[str, Sequence[tuple[str, nn.Parameter]]]) -> None:
        super().__init__()
        for name, parameter in (pair for pairs in parts.values() for pair in pairs):
            *path, last = name.split(".")
            holder: nn.Module = self
            for step in path:
                if step not in holder._modules:
                    holder.add_module(step, nn.Module())
                holder = holder._modules[step]
            holder.register_parameter(last, parameter)


def check_cover(adapt: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Raise ValueError unless every parameter of `adapt` is in exactly one group, and nothing else is."""
    names = {id(p): name for name, p in adapt.named_parameters()}
    declared = {id(p) for group in groups for p in group.parameters}
    missing = [name for key, name in names.items() if key not in declared]
    count = sum(len(group.parameters) for group in groups)
    if missing or count != len(declared) or declared - set(names):
        raise ValueError(f"the trainable groups and the module differ; in no group: {missing or 'none'}")


def build_group_optimizer(adapt: nn.Module, groups: Sequence[ParameterGroup], node: CfgNode) -> torch.optim.Optimizer:
    """Return Dassl's optimizer over the groups.

    Args:
        adapt: The module that the groups cover.
        groups: Each with its own learning rate and weight decay.
        node: Dassl's `OPTIM`.
    """
    declared = [
        {"params": list(g.parameters), "lr": node.LR * g.lr_mult, "weight_decay": g.weight_decay, "name": g.name}
        for g in groups
    ]
    return build_optimizer(adapt, node, declared)


def log_groups(groups: Sequence[ParameterGroup]) -> None:
    """Announce what trains."""
    counts = [sum(p.numel() for p in group.parameters) for group in groups]
    for group, count in zip(groups, counts):
        logger.info(
            "Trainable: %s, %s numbers, lr x %g, weight decay %g", group.name, f"{count:,}", group.lr_mult, group.weight_decay
        )
    logger.info("Trainable in all: %s numbers", f"{sum(counts):,}")

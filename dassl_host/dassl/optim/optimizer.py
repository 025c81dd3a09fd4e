"""Optimizers by their config name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

__all__ = ["AVAI_OPTIMS", "build_optimizer"]

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer `OPTIM.NAME` over all parameters, frozen ones too.

    Args:
        model: A module, or an iterable of parameters or parameter groups.
        optim_cfg: The node OPTIM.
        param_groups: If given, used instead of `model`; STAGED_LR is then ignored with a warning.
    Raises:
        ValueError: If OPTIM.NAME is unknown.
        TypeError: If OPTIM.STAGED_LR is True and `model` is not a module.
    """
    if optim_cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"OPTIM.NAME is {optim_cfg.NAME!r}; expected one of {', '.join(AVAI_OPTIMS)}")
    if param_groups is None:
        param_groups = _staged_groups(model, optim_cfg) if optim_cfg.STAGED_LR else _parameters(model)
    elif optim_cfg.STAGED_LR:
        warnings.warn("OPTIM.STAGED_LR is ignored: param_groups are given", stacklevel=2)
    return _construct(param_groups, optim_cfg)


def _parameters(model: nn.Module | Iterable[Any]) -> Iterable[Any]:
    return model.parameters() if isinstance(model, nn.Module) else model


def _staged_groups(model: nn.Module | Iterable[Any], optim_cfg: CfgNode) -> list[dict[str, Any]]:
    """Two groups: everything outside NEW_LAYERS with the reduced rate, then NEW_LAYERS."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"OPTIM.STAGED_LR needs a module; got {type(model).__name__}")
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = optim_cfg.NEW_LAYERS
    names = [names] if isinstance(names, str) else names
    new = [param for name, child in model.named_children() if name in names for param in child.parameters()]
    if not new:
        message = f"OPTIM.NEW_LAYERS {list(names)} names no layer with parameters; OPTIM.STAGED_LR is useless"
        warnings.warn(message, stacklevel=3)
    new_ids = {id(param) for param in new}
    base = [param for param in model.parameters() if id(param) not in new_ids]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


def _construct(groups: Iterable[Any], optim_cfg: CfgNode) -> torch.optim.Optimizer:
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    momentum = optim_cfg.MOMENTUM
    if optim_cfg.NAME == "sgd":
        damping, nesterov = optim_cfg.SGD_DAMPNING, optim_cfg.SGD_NESTEROV
        return torch.optim.SGD(groups, momentum=momentum, dampening=damping, nesterov=nesterov, **common)
    if optim_cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=momentum, alpha=optim_cfg.RMSPROP_ALPHA, **common)
    if optim_cfg.NAME == "radam":
        return torch.optim.RAdam(groups, betas=betas, decoupled_weight_decay=True, **common)
    if optim_cfg.NAME == "adamw":
        return torch.optim.AdamW(groups, betas=betas, **common)
    return torch.optim.Adam(groups, betas=betas, amsgrad=optim_cfg.NAME == "amsgrad", **common)

"""Checkpoint files, trainable layers and weights."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import torch
from torch import nn

from dassl.utils.tools import mkdir_if_missing
from dassl_host.legacy_checkpoint import load_checkpoint
from dassl_host.trainer_state import BEST_MODEL, EPOCH_MODEL, POINTER, load_latest, restore_model, schedule_differences

__all__ = [
    "adjust_learning_rate",
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_bn_to_eval",
]

_WRAPPER_PREFIX = "module."


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, then the file `checkpoint` that names it.

    Each file appears complete or not at all: a crash or a full disk leaves the previous checkpoint and its pointer
    usable.

    Args:
        state: Content; `epoch` counts finished epochs, `state_dict` holds the weights.
        save_dir: Folder, made if missing.
        is_best: Also write a copy as `model-best.pth.tar`.
        remove_module_from_keys: Strip the leading `module.` of a wrapped model's keys.
        model_name: File name; "" = `model.pth.tar-<epoch>`.
    Raises:
        OSError: If a file cannot be written (names it).
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": _strip_wrapper(state["state_dict"])}
    file_name = model_name or f"{EPOCH_MODEL}{state['epoch']}"
    path = os.path.join(save_dir, file_name)
    _replace_file(path, lambda file: torch.save(state, file))
    print(f"Checkpoint saved to {path}")
    _replace_file(os.path.join(save_dir, POINTER), lambda file: file.write(f"{file_name}\n".encode()))
    if is_best:
        best_path = os.path.join(save_dir, BEST_MODEL)
        with open(path, "rb") as source:
            _replace_file(best_path, lambda file: shutil.copyfileobj(source, file))
        print(f'Best checkpoint saved to "{best_path}"')


def _strip_wrapper(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(_WRAPPER_PREFIX): value for key, value in state_dict.items()}


def _replace_file(path: str, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside `path`, reach the disk, then take its place in one step."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def resume_from_checkpoint(
    fdir: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> int:
    """Load the latest checkpoint of the folder `fdir` into model, optimizer and scheduler.

    Returns:
        The number of finished epochs.
    Raises:
        FileNotFoundError: If the folder's pointer or the file it names is missing.
        ValueError: If the saved schedule is not the configured one (lists key and both values).
    """
    checkpoint = load_latest(fdir)
    differences = schedule_differences(scheduler, checkpoint)
    if differences:
        title = f"cannot resume from {fdir}: the saved schedule is not the configured one"
        raise ValueError("\n  ".join([title, *differences]))
    restore_model(checkpoint, model, optimizer, scheduler)
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load the weights whose name and shape fit; the others are listed, and a warning tells if none did."""
    checkpoint = load_checkpoint(weight_path)
    weights = _strip_wrapper(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        warnings.warn(f"no weight in {weight_path} fits the model; compare the key names", stacklevel=2)
        return
    model.load_state_dict({**own, **fitting})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    left_out = [key for key in weights if key not in fitting]
    if left_out:
        print(f"Layers discarded due to unmatched keys or size: {left_out}")


def adjust_learning_rate(
    optimizer: torch.optim.Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Set the rate of all parameter groups for `epoch`: stepwise decay, or linear from `base_lr` to `final_lr`."""
    if linear_decay:
        done = epoch / max_epoch
        lr = done * final_lr + (1 - done) * base_lr
    else:
        lr = base_lr * gamma ** (epoch // stepsize)
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_bn_to_eval(m: nn.Module) -> None:
    """Freeze the running statistics if `m` is a batch norm; meant for `model.apply`."""
    if "BatchNorm" in type(m).__name__:
        m.eval()


def open_all_layers(model: nn.Module) -> None:
    """Put the whole model in training mode and let every parameter learn."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Let only the named children learn; all others are frozen and put in evaluation mode.

    Raises:
        AssertionError: If a name is not an attribute of the model.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = [open_layers] if isinstance(open_layers, str) else open_layers
    for name in names:
        assert hasattr(model, name), f"{name} is not an attribute of {type(model).__name__}"
    for name, child in model.named_children():
        child.train(name in names)
        child.requires_grad_(name in names)


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """Count the numbers in a model's parameters, or in `params` (parameters or groups with a single one).

    Raises:
        ValueError: If both are None.
    """
    if model is not None:
        return sum(param.numel() for param in model.parameters())
    if params is not None:
        return sum((param["params"] if isinstance(param, dict) else param).numel() for param in params)
    raise ValueError("count_num_param() needs a model or parameters")


_INITIALISERS: dict[str, Callable[[torch.Tensor, float], Any]] = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise convolutions and linear layers by `init_type`, norms to 1 and all biases to 0.

    Raises:
        NotImplementedError: If `init_type` is none of normal, xavier, kaiming, orthogonal.
    """
    if init_type not in _INITIALISERS:
        raise NotImplementedError(f"init_type is {init_type!r}; expected one of {', '.join(_INITIALISERS)}")
    for module in model.modules():
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is not None and ("Conv" in kind or "Linear" in kind):
            _INITIALISERS[init_type](weight.data, gain)
        elif weight is not None and ("BatchNorm" in kind or "InstanceNorm" in kind):
            nn.init.ones_(weight.data)
        else:
            continue
        if bias is not None:
            nn.init.zeros_(bias.data)

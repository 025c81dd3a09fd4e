"""Exported weights: one safetensors file per epoch, with a hash of what is in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_ext.files import replacing
from clip_ext.weights import compute_fingerprint
from trainers.stored_tensors import find_differences

logger = logging.getLogger(__name__)



@dataclass(frozen=True)
class StoredWeights:
    """One exported weights file.

    Attributes:
        path: The file.
        epoch: Finished epochs, from 1; its name counts from 0.
    """

    path: Path
    epoch: int


def write_weights(path: Path, model: nn.Module, epoch: int) -> None:
    """Write the parameters of a model, each once, with a hash of them.

    Args:
        path: File to write; its folder is made.
        model: As it is now.
        epoch: Finished epochs, from 1.
    Raises:
        ValueError: If a tensor is not finite (names them).
        OSError: If the file cannot be written.
    """
    state = {name: tensor.detach().float().cpu() for name, tensor in own_tensors(model).items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: not finite: {', '.join(broken[:5])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(state, path, {"epoch": str(epoch), "sha256": compute_fingerprint(state)})


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters by their stored names; tied ones stand under the first name only."""
    return dict(model.named_parameters())


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and text into one file, whole or not at all.

    Raises:
        OSError: If it cannot be written (names it).
    """
    contiguous = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, dict(metadata))
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error


@torch.no_grad()
def load_weights(model: nn.Module, weights: StoredWeights) -> None:
    """Copy exported weights into a model, strictly.

    Raises:
        ValueError: If the file is damaged, or belongs to another model: every difference.
    """
    state, metadata = read_tensors(weights.path)
    if metadata.get("sha256") not in (None, compute_fingerprint(state)):  # None: written by another program
        raise ValueError(f"{weights.path}: damaged or changed since it was written")
    own = own_tensors(model)
    problems = find_differences(state, own)
    if problems:
        raise ValueError("\n  ".join([f"{weights.path}: {len(problems)} difference(s) to the model as configured:", *problems]))
    for name, parameter in own.items():
        parameter.copy_(state[name])
    logger.info("Loaded %s: %d finished epoch(s), counted from 0 in its name", weights.path, weights.epoch)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the text of a file that `save_tensors` wrote.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error

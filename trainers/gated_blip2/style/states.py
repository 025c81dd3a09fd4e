"""The tensors of a network inside whatever a training script stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.gated_blip2.style.timm_layout import find_tf_name, is_timm_layout

# Under which names scripts keep the weights; the first one that is there counts.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "ema")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and averaged models, of torch.compile
AVERAGE_COUNT = "n_averaged"  # torch's AveragedModel counts beside its weights
MAX_DEPTH = 8  # of containers in each other; one may hold itself
SHOWN = 8


def find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, without containers and prefixes.

    Args:
        content: What the file holds.
        path: The file, for messages.
    Raises:
        ValueError: If it holds no network's tensors, some are not finite, or they are of timm's tf_efficientnet.
    """
    state = _strip_prefixes(_unwrap(content, path))
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise ValueError(f"{path} has weights that are infinite or not a number, in {', '.join(wrong[:SHOWN])}")
    if is_timm_layout(state) and (name := find_tf_name(content, path)):
        raise ValueError(
            f"{path} holds timm's {name!r}: the shapes of efficientnet_b3, but another padding and another epsilon in the "
            "BatchNorms, so its features would be wrong here; give weights of torchvision's or timm's efficientnet_b3"
        )
    return state


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the innermost mapping of names to tensors."""
    passed = []
    while not _is_state(content):
        known = [name for name in CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
        if not known or len(passed) == MAX_DEPTH:
            raise ValueError(
                f"{path} holds no weights: {_describe(content, passed)}; expected name -> tensor, alone or below one of "
                f"{', '.join(CONTAINERS)}"
            )
        passed.append(known[0])
        content = content[known[0]]
    return dict(content)


def _is_state(content: Any) -> bool:
    """Tell whether something is a mapping of names to tensors, and not empty."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())


def _describe(content: Any, passed: list[str]) -> str:
    """Say what was found where weights were expected."""
    place = "".join(f"[{name!r}]" for name in passed) or "it"
    if not isinstance(content, Mapping):
        return f"found a {type(content).__name__}"
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    return f"{place} has entries that are no tensors: {', '.join(others[:SHOWN])}" if others else f"{place} is empty"


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes, which all names bear or none, and an average's count."""
    while True:
        names = [name for name in state if name != AVERAGE_COUNT]
        prefix = next((prefix for prefix in PREFIXES if names and all(name.startswith(prefix) for name in names)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): state[name] for name in names}

"""Files of style encoders: safetensors with a JSON beside them, and what others store.

`style_encoder.json` says what the tensors of `style_encoder.safetensors` cannot: architecture, class names, view, scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_ext.file_hashes import hash_file
from clip_ext.files import replacing
from trainers.gated_blip2.style.networks import ARCHITECTURES
from trainers.gated_blip2.style.pickles import load_pickle_safely
from trainers.gated_blip2.style.states import find_state
from trainers.gated_blip2.style.view import StyleView, read_view

KEY = "TRAINER.GATEDBLIP2.STYLE.CHECKPOINT"
WEIGHTS = "style_encoder.safetensors"
SHIPPED = {"tiny_style": Path(__file__).parents[1] / "assets" / "tiny_style"}  # name -> folder
_ENTRIES = ("arch", "classes", "view", "scores")


@dataclass(frozen=True)
class StyleCard:
    """What the JSON beside the weights says.

    Attributes:
        arch: A name of `ARCHITECTURES`.
        class_names: In the order of the classes; None = the encoder has no styles.
        view: Its preprocessing.
        scores: Name -> number, as measured by who trained it.
    """

    arch: str
    class_names: tuple[str, ...] | None
    view: StyleView
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StyleFile:
    """A style encoder's file, read.

    Attributes:
        path: Of the weights.
        state: Tensors by name, on the CPU, without containers and prefixes.
        sha256: Of the bytes of the weights.
        card: The JSON beside them; None if there is none.
    """

    path: Path
    state: Mapping[str, Tensor]
    sha256: str
    card: StyleCard | None


def find_style_file(checkpoint: str) -> Path | None:
    """Return the path of STYLE.CHECKPOINT's weights; None if there are none.

    Args:
        checkpoint: A file, a folder with `style_encoder.safetensors`, or a shipped name; "" = none.
    """
    if not checkpoint:
        return None
    path = SHIPPED.get(checkpoint, Path(checkpoint))
    path = path / WEIGHTS if path.is_dir() or checkpoint in SHIPPED else path
    return path if path.is_file() else None


def describe_missing_file(checkpoint: str) -> str:
    """Return the message for a STYLE.CHECKPOINT that is not there, with the ways out of it."""
    found = "is empty" if not checkpoint else f"is {checkpoint!r}: no such file, nor a folder with {WEIGHTS} (in {Path.cwd()})"
    return (
        f"{KEY} {found}. Either give the path of a .safetensors or .pt file with the encoder's weights ({', '.join(SHIPPED)} "
        "with STYLE.ARCH efficientnet_tiny is the shipped miniature); or train one: python scripts/pretrain_style_encoder.py "
        "--root DATA --data wikiart --output-dir OUT; or, for smoke tests only, set TRAINER.GATEDBLIP2.STYLE.FALLBACK to "
        "imagenet or random"
    )


def read_style_file(path: Path) -> StyleFile:
    """Read weights, and the JSON beside them if they are safetensors.

    Args:
        path: Of the weights: safetensors, or anything that torch saved.
    Raises:
        ValueError: If the file is damaged, unsafe, or holds no network's weights.
    """
    if path.suffix != ".safetensors":
        return StyleFile(path, find_state(load_pickle_safely(path), path), hash_file(path), None)
    try:
        content = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    return StyleFile(path, find_state(content, path), hash_file(path), read_card(path.with_suffix(".json")))


def read_card(path: Path) -> StyleCard | None:
    """Read the JSON beside weights; None if there is none.

    Raises:
        ValueError: If it has another form (lists every problem).
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected an object with {', '.join(_ENTRIES)}")
    view, problems = read_view(data.get("view"))
    problems += [f"unknown entry {name!r}" for name in sorted(data.keys() - set(_ENTRIES))]
    if data.get("arch") not in ARCHITECTURES:
        problems.append(f"'arch' is {data.get('arch')!r}; expected one of {', '.join(ARCHITECTURES)}")
    classes = data.get("classes")
    if classes is not None and not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        problems.append(f"'classes' is {classes!r:.80}; expected a list of names, or null")
    if not isinstance(data.get("scores", {}), dict):
        problems.append(f"'scores' is {data['scores']!r:.80}; expected an object")
    if problems:
        raise ValueError(f"{path}, which describes the weights beside it: {'; '.join(problems)}")
    return StyleCard(data["arch"], None if classes is None else tuple(classes), view, data.get("scores", {}))


def write_style_file(folder: Path, network: nn.Module, card: StyleCard, *, dtype: torch.dtype | None = None) -> Path:
    """Write `style_encoder.safetensors` and the JSON beside it, and return the path of the weights.

    Args:
        folder: Made if need be.
        network: Its state is stored, without wrappers.
        card: What the JSON says.
        dtype: Of stored floating-point tensors, for example fp16; None = their own. They are loaded as fp32 in any case.
    Raises:
        ValueError: If a number does not fit into `dtype`.
        OSError: If writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS
    write_state(path, network.state_dict(), dtype=dtype)
    content = {
        "arch": card.arch,
        "classes": None if card.class_names is None else list(card.class_names),
        "view": card.view.as_json(),
        "scores": dict(card.scores),
    }
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_state(path: Path, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        ValueError: If a number does not fit into `dtype` (names the tensors).
    """
    stored = {name: _cast(tensor.detach().cpu(), dtype) for name, tensor in state.items()}
    lost = _find_lost(state, stored)
    if lost:
        raise ValueError(f"{path}: numbers too large for {dtype} in {', '.join(lost[:5])}")
    with replacing(path) as temporary:
        save_file(stored, temporary)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy that safetensors can store: of its own memory, in one piece."""
    floating = tensor.is_floating_point() and dtype is not None
    return tensor.to(dtype if floating else tensor.dtype, copy=True, memory_format=torch.contiguous_format)


def _find_lost(state: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Sequence[str]:
    return [name for name, tensor in stored.items() if not torch.isfinite(tensor).all() and torch.isfinite(state[name]).all()]

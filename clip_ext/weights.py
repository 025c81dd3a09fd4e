"""CLIP weight files: safe reading, identification from tensor names, fingerprints."""

import hashlib
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Mapping

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_ext.towers import NEEDS_CLS

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Scalars that OpenAI's archives keep beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_DUPLICATE_PREFIX, _BLOCKS_PREFIX = "visual.multi_transformer.", "visual.transformer."
_NO_CLS_PREFIXES = {
    "visual.layer1.": "a ResNet",
    "visual.attnpool.": "a ResNet",
    "visual.trunk.": "a timm model",
    "visual.attn_pool.": "attention-pooled",
}

_fingerprints: dict[tuple[str, int, int], str] = {}


def load_state_dict(path: Path) -> StateDict:
    """Read a CLIP state dict without executing anything stored in the file.

    Args:
        path: A `.safetensors` file, or a `torch.save` file of a state dict or of a checkpoint with a
            `state_dict` entry.
    Returns:
        Tensor name -> tensor on the CPU, as stored, without the `module.` prefix of data-parallel training.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is a TorchScript archive, is damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return clean_state_dict(content, path)


def clean_state_dict(content: Mapping[str, Tensor], path: Path) -> StateDict:
    """Drop what is no weight of a CLIP: prefixes, OpenAI's size scalars, an equal second copy of the vision blocks.

    Args:
        path: Of the file it comes from, for messages.
    Raises:
        ValueError: If an entry is no tensor, or the second copy differs.
    """
    state = {key.removeprefix("module."): value for key, value in content.items() if key not in _NOT_WEIGHTS}
    strangers = sorted(key for key, value in state.items() if not isinstance(value, Tensor))
    if strangers or not state:
        raise ValueError(f"{path} is not a state dict; entries that are no tensors: {strangers[:5] or 'it is empty'}")
    return _drop_duplicate_blocks(state, path)


def _load_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _load_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive (OpenAI's own .pt format), which cannot be read safely; convert it "
            f"once with: python scripts/convert_openai_clip.py {path.name} {path.stem}.safetensors"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError) as error:  # what torch raises for other bytes
        raise ValueError(f"{path} is damaged or holds more than tensors: {type(error).__name__} {error}") from error


def _is_torchscript(path: Path) -> bool:
    """Only TorchScript archives carry compiled `code/`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _drop_duplicate_blocks(state: StateDict, path: Path) -> StateDict:
    """Some forks store the vision blocks twice; a second copy that differs would be silently lost."""
    copies = [key for key in state if key.startswith(_DUPLICATE_PREFIX)]
    for key in copies:
        original = state.get(_BLOCKS_PREFIX + key.removeprefix(_DUPLICATE_PREFIX))
        if original is None or not torch.equal(original, state[key]):
            raise ValueError(f"{path}: {key} differs from its {_BLOCKS_PREFIX}* counterpart; "
                             f"a model with two different sets of vision blocks is not supported")
    if copies:
        logger.info("%s: dropped %d tensors of a second, equal copy of the vision blocks", path, len(copies))
    return {key: value for key, value in state.items() if not key.startswith(_DUPLICATE_PREFIX)}


def describe_state_dict(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Read a ViT CLIP's sizes from its tensor names and shapes.

    Returns:
        vision_layers, vision_width, patch_size and grid (tokens per side), embed_dim, text_layers, text_width,
        context_length, vocab_size.
    Raises:
        ValueError: If it is no CLIP state dict, or its image tower has no CLS token.
    """
    for prefix, kind in _NO_CLS_PREFIXES.items():
        if any(key.startswith(prefix) for key in state):
            raise ValueError(f"the image tower of these weights is {kind} ({prefix}*); this package {NEEDS_CLS}")
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight",
              "positional_embedding", "ln_final.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"not a CLIP state dict in OpenAI's or open_clip's naming; missing tensors: {missing}; "
                         f"first names found: {sorted(state)[:3]}")
    if "visual.class_embedding" not in state:
        raise ValueError(f"these weights have no visual.class_embedding; this package {NEEDS_CLS}")
    conv, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    return {
        "vision_layers": _count_layers(state, "visual."),
        "vision_width": conv.shape[0],
        "patch_size": conv.shape[-1],
        "grid": round((positions.shape[0] - 1) ** 0.5),
        "embed_dim": state["visual.proj"].shape[1],
        "text_layers": _count_layers(state, "transformer."),
        "text_width": state["ln_final.weight"].shape[0],
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
    }


def _count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return sum(key.startswith(prefix) and key.endswith(".attn.in_proj_weight") for key in state)


def describe_config(model_cfg: Mapping) -> dict[str, int]:
    """The same sizes as `describe_state_dict`, read from an open_clip model config."""
    vision, text = open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]), open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    return {
        "vision_layers": vision.layers,
        "vision_width": vision.width,
        "patch_size": vision.patch_size,
        "grid": vision.image_size // vision.patch_size,
        "embed_dim": model_cfg["embed_dim"],
        "text_layers": text.layers,
        "text_width": text.width,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
    }


def identify_architecture(state: Mapping[str, Tensor], architectures: Mapping[str, Mapping]) -> str:
    """Find the architecture whose sizes equal those of a state dict.

    Args:
        architectures: Name -> open_clip model config, in order of preference.
    Raises:
        ValueError: If none fits (says what was read, and how the nearest architecture differs).
    """
    found = describe_state_dict(state)
    differences = {}
    for name, model_cfg in architectures.items():
        expected = describe_config(model_cfg)
        differences[name] = {key: value for key, value in expected.items() if found[key] != value}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise ValueError(
            f"no known architecture fits these weights. Read: {_list_sizes(found)}. Nearest: {nearest}, which has "
            f"{_list_sizes(differences[nearest])}. Name the architecture with open_clip:<arch>:<file>"
        )
    return nearest


def _list_sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def compute_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict: SHA-256 over (name, shape, dtype, bytes) of its tensors in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def compute_file_fingerprint(path: Path, state: Mapping[str, Tensor]) -> str:
    """Fingerprint of the weights read from `path`, computed once per process and file version."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _fingerprints:
        _fingerprints[key] = compute_fingerprint(state)
    return _fingerprints[key]

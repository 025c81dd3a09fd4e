"""Load a CLIP by name or file. open_clip builds the towers, tokenises and fetches weights.

The weights of `tiny12` are this project's own; all others keep the licence of their publisher.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn

from clip_ext.towers import NEEDS_CLS, require_cls_vit
from clip_ext.weights import (
    StateDict,
    compute_file_fingerprint,
    compute_fingerprint,
    identify_architecture,
    load_state_dict,
)

logger = logging.getLogger(__name__)

_ROOM = Path(__file__).parent
_TINY_NAME = "tiny12"
_TINY_CONFIG = _ROOM / "model_configs" / "tiny12.json"
_TINY_WEIGHTS = _ROOM / "assets" / "tiny12.safetensors"
_TINY_BPE = _ROOM / "assets" / "tiny12_bpe.txt.gz"
_TINY_VOCAB_SIZE = 4514
_CLIP_VOCAB_SIZE = 49408

# OpenAI trained with QuickGELU. open_clip only warns when the plain architecture meets OpenAI's weights.
_OPENAI_ARCHITECTURES = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
_OPEN_CLIP_PREFIX, _HUB_PREFIX, _DIR_PREFIX = "open_clip:", "hf-hub:", "local-dir:"
_DIR_CONFIG = "open_clip_config.json"
_DIR_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)

Tokenizer = Callable[[Sequence[str]], Tensor]

open_clip.add_model_config(_TINY_CONFIG)


@dataclass(frozen=True)
class ClipInfo:
    """Sizes and preprocessing of a loaded CLIP.

    Attributes:
        name: The name it was asked for.
        image_size_px: Side of its square input.
        patch_size: Side of a patch in pixels.
        grid: Patches per side.
        depth, width, heads: Of the vision transformer.
        embed_dim: Size E of the joint image-text space.
        context_length: Longest text in tokens, start and end included.
        mean, std: RGB statistics for inputs in [0, 1].
        interpolation: Resampling of the test transform.
    """

    name: str
    image_size_px: int
    patch_size: int
    grid: int
    depth: int
    width: int
    heads: int
    embed_dim: int
    context_length: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass
class LoadedClip:
    """A CLIP with everything that belongs to it.

    Attributes:
        model: open_clip's CLIP in eval mode. Its parameters still require gradients; freezing is the trainer's.
        tokenizer: Texts -> token numbers, (T, context_length), int64.
        preprocess: Test transform, PIL image -> (3, H, W), normalised.
        info: Sizes and preprocessing.
        fingerprint: SHA-256 over the weights as stored, before any cast.
    """

    model: nn.Module
    tokenizer: Tokenizer
    preprocess: Callable[[Any], Tensor]
    info: ClipInfo
    fingerprint: str


@dataclass(frozen=True)
class ClipIdentity:
    """What distinguishes a CLIP, read from its files without building it.

    Attributes:
        fingerprint: As of the loaded CLIP.
        settings: Hash of its architecture, tokenizer and preprocessing; equal weights with another activation differ.
        embed_dim: Size E of the joint image-text space.
    """

    fingerprint: str
    settings: str
    embed_dim: int


@dataclass(frozen=True)
class _Source:
    """Where a CLIP comes from: an open_clip config, a weights file, and what else is known about it."""

    model_cfg: dict
    weights: Path
    tokenizer_name: str
    preprocess_cfg: Mapping[str, Any]


def available_models() -> list[str]:
    """Short names that `load_clip` knows."""
    return [_TINY_NAME, *_OPENAI_ARCHITECTURES]


def build_clip(model_cfg: dict, *, name: str, seed: int = 0, tokenizer: Tokenizer | None = None) -> LoadedClip:
    """Build a CLIP with random weights from an open_clip model config.

    For pre-training, benchmarks and tests. The global random state is left as it was.

    Args:
        model_cfg: open_clip's schema: embed_dim, vision_cfg, text_cfg, optionally quick_gelu.
        name: Goes into `info.name`.
        seed: Of the random weights.
        tokenizer: Default: the list of tiny12 or of CLIP, whichever has `text_cfg.vocab_size` entries.
    Returns:
        The CLIP in eval mode, fp32, on the CPU.
    Raises:
        ValueError: If the image tower is not a ViT with a CLS token, or no tokenizer has that vocabulary.
    """
    model = _build_model(model_cfg, seed)
    if tokenizer is None:
        tokenizer = _build_tokenizer(model_cfg["text_cfg"])
    return _assemble(model, tokenizer, {}, name=name, fingerprint=compute_fingerprint(model.state_dict()))


def load_clip(
    name_or_path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    cache_dir: str | None = None,
) -> LoadedClip:
    """Load a CLIP ViT with its weights.

    Args:
        name_or_path: A name of `available_models()`; `open_clip:<arch>[:<tag or file>]`; `hf-hub:<id>`;
            `local-dir:<dir>` with an open_clip_config.json; or a state dict file (`.safetensors`, `.pt`, ...),
            whose architecture is read from its tensors and which is taken to be trained with QuickGELU.
        device: Where the model goes.
        dtype: Every floating-point tensor is cast to it once, here.
        cache_dir: Download folder; default: that of open_clip.
    Returns:
        The CLIP in eval mode.
    Raises:
        FileNotFoundError: If a named file or folder, or the weights of tiny12, do not exist.
        ValueError: If the name is unknown, the architecture does not fit the weights or has no CLS token, or the
            file is not a state dict.
        RuntimeError: If weights cannot be fetched.
    """
    source = _find_source(str(name_or_path), cache_dir)
    state = load_state_dict(source.weights)
    fingerprint = compute_file_fingerprint(source.weights, state)
    model = _build_model(source.model_cfg, seed=0)
    _fill_weights(model, state, source.weights)
    model.to(device=device, dtype=dtype)
    tokenizer = _build_tokenizer(source.model_cfg["text_cfg"], source.tokenizer_name, cache_dir)
    return _assemble(model, tokenizer, source.preprocess_cfg, name=str(name_or_path), fingerprint=fingerprint)


def identify_clip(name_or_path: str, *, cache_dir: str | None = None) -> ClipIdentity:
    """Say which CLIP `load_clip` would load, for keys of caches; arguments and errors as there."""
    source = _find_source(str(name_or_path), cache_dir)
    # A folder's own name says nothing about what is in it.
    tokenizer = "" if source.tokenizer_name.startswith(_DIR_PREFIX) else source.tokenizer_name
    known = [source.model_cfg, tokenizer, dict(source.preprocess_cfg)]
    settings = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode("utf-8")).hexdigest()
    fingerprint = compute_file_fingerprint(source.weights, load_state_dict(source.weights))
    return ClipIdentity(fingerprint, settings, source.model_cfg["embed_dim"])


def _find_source(name: str, cache_dir: str | None) -> _Source:
    """Translate a name into config, weights file, tokenizer and preprocessing."""
    if name == _TINY_NAME:
        return _find_tiny()
    if name in _OPENAI_ARCHITECTURES:
        return _find_open_clip(_OPENAI_ARCHITECTURES[name], "openai", cache_dir)
    if name.startswith(_OPEN_CLIP_PREFIX):
        architecture, _, tag = name.removeprefix(_OPEN_CLIP_PREFIX).partition(":")
        return _find_open_clip(architecture, tag, cache_dir)
    if name.startswith(_HUB_PREFIX):
        return _find_in_hub(name, cache_dir)
    if name.startswith(_DIR_PREFIX):
        return _find_in_folder(Path(name.removeprefix(_DIR_PREFIX)))
    path = Path(name)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file() or path.suffix:
        return _find_file(path)
    hint = difflib.get_close_matches(name, available_models(), n=1)
    raise ValueError(
        f"unknown CLIP {name!r}{f' (did you mean {hint[0]!r}?)' if hint else ''}; expected one of "
        f"{available_models()}, open_clip:<arch>[:<tag or file>], hf-hub:<id>, local-dir:<dir> or a weights file"
    )


def _find_tiny() -> _Source:
    if not _TINY_WEIGHTS.is_file():
        raise FileNotFoundError(
            f"the weights of {_TINY_NAME} are missing: no {_TINY_WEIGHTS}; restore the file from the repository or "
            f"make it with: python scripts/pretrain_tiny_clip.py"
        )
    return _Source(json.loads(_TINY_CONFIG.read_text(encoding="utf-8")), _TINY_WEIGHTS, _TINY_NAME, {})


def _find_open_clip(architecture: str, tag: str, cache_dir: str | None) -> _Source:
    model_cfg = open_clip.get_model_config(architecture)
    if model_cfg is None:
        hint = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        raise ValueError(f"open_clip has no architecture {architecture!r}; nearest: {hint}")
    _check_vision_config(model_cfg, architecture)
    if tag and Path(tag).suffix:
        return _Source(model_cfg, Path(tag), architecture, {})
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag = tag or (tags[0] if len(tags) == 1 else "")
    if tag not in tags:
        raise ValueError(f"open_clip:{architecture} needs one of its weights, got {tag!r}; expected one of {tags}, "
                         f"or a file: open_clip:{architecture}:<file>")
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    _check_gelu(architecture, tag, model_cfg, pretrained)
    return _Source(model_cfg, _fetch_tag(architecture, tag, pretrained, cache_dir), architecture, pretrained)


def _check_vision_config(model_cfg: Mapping, name: str) -> None:
    """Refuse before anything is fetched what `require_cls_vit` would refuse afterwards."""
    vision = model_cfg["vision_cfg"]
    kinds = {
        "a ResNet": isinstance(vision.get("layers"), (list, tuple)),
        "a timm model": "timm_model_name" in vision,
        "attention-pooled": vision.get("attentional_pool") or "multimodal_cfg" in model_cfg,
        "pooled without CLS": vision.get("pool_type", "tok") != "tok",
    }
    found = [kind for kind, is_it in kinds.items() if is_it]
    if found:
        raise ValueError(f"the image tower of {name} is {' and '.join(found)}; this package {NEEDS_CLS}")


def _check_gelu(architecture: str, tag: str, model_cfg: Mapping, pretrained: Mapping) -> None:
    """open_clip only warns here, and then computes features with the wrong activation."""
    of_weights = pretrained.get("quick_gelu", False)
    if model_cfg.get("quick_gelu", False) == of_weights:
        return
    plain = architecture.removesuffix("-quickgelu")
    raise ValueError(f"open_clip:{architecture}:{tag}: these weights were trained with quick_gelu={of_weights}, which "
                     f"{architecture} has not; use open_clip:{plain}{'-quickgelu' if of_weights else ''}:{tag}")


def _fetch_tag(architecture: str, tag: str, pretrained: Mapping, cache_dir: str | None) -> Path:
    try:
        return Path(open_clip.download_pretrained(dict(pretrained), cache_dir=cache_dir))
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"could not fetch the weights {tag!r} of {architecture}: {error}. Without network, give a "
                           f"local file: open_clip:{architecture}:<file>") from error


def _find_in_hub(name: str, cache_dir: str | None) -> _Source:
    model_id = name.removeprefix(_HUB_PREFIX)
    try:
        config = Path(download_pretrained_from_hf(model_id, filename=_DIR_CONFIG, cache_dir=cache_dir))
        weights = Path(download_pretrained_from_hf(model_id, cache_dir=cache_dir))
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"could not fetch {name}: {error}. Without network, use local-dir:<dir>") from error
    return _read_folder_config(config, weights, name)


def _find_in_folder(folder: Path) -> _Source:
    config = folder / _DIR_CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"local-dir:{folder} has no {_DIR_CONFIG}")
    weights = next((folder / name for name in _DIR_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"local-dir:{folder} has no weights; expected one of {', '.join(_DIR_WEIGHTS)}")
    return _read_folder_config(config, weights, f"{_DIR_PREFIX}{folder}")


def _read_folder_config(config: Path, weights: Path, tokenizer_name: str) -> _Source:
    content = json.loads(config.read_text(encoding="utf-8"))
    if "model_cfg" not in content:
        raise ValueError(f"{config} has no model_cfg; found {sorted(content)}")
    _check_vision_config(content["model_cfg"], tokenizer_name)
    return _Source(content["model_cfg"], weights, tokenizer_name, content.get("preprocess_cfg", {}))


def _find_file(path: Path) -> _Source:
    names = [*_OPENAI_ARCHITECTURES.values(), _TINY_NAME]
    architectures = {name: open_clip.get_model_config(name) for name in names}
    try:
        architecture = identify_architecture(load_state_dict(path), architectures)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    logger.info("%s: read as %s (for weights trained without QuickGELU: open_clip:<arch>:<file>)", path, architecture)
    return _Source(architectures[architecture], path, architecture, {})


def _build_model(model_cfg: dict, seed: int) -> nn.Module:
    """Build open_clip's module on the CPU; random weights come from a generator state of their own."""
    _check_vision_config(model_cfg, "this config")
    arguments = deepcopy(model_cfg)
    custom_text = arguments.pop("custom_text", False) or "hf_model_name" in arguments["text_cfg"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
    require_cls_vit(model.visual)
    return model.eval()


def _fill_weights(model: nn.Module, state: StateDict, path: Path) -> None:
    """Copy a state dict into the model; every tensor must fit."""
    own = model.state_dict()
    if "text.positional_embedding" in own and "positional_embedding" in state:
        state = {name if name in own else f"text.{name}": tensor for name, tensor in state.items()}
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape
        ),
    }
    found = [f"{len(names)} tensors {kind} ({', '.join(names[:3])})" for kind, names in problems.items() if names]
    if found:
        raise ValueError(f"{path} does not fit its architecture: {'; '.join(found)}")
    model.load_state_dict(state)


def _build_tokenizer(text_cfg: Mapping, name: str = "", cache_dir: str | None = None) -> Tokenizer:
    vocab_size, context_length = text_cfg.get("vocab_size", _CLIP_VOCAB_SIZE), text_cfg.get("context_length", 77)
    if vocab_size == _TINY_VOCAB_SIZE:
        return open_clip.SimpleTokenizer(bpe_path=str(_TINY_BPE), context_length=context_length)
    if name:
        return open_clip.get_tokenizer(name, cache_dir=cache_dir)
    if vocab_size == _CLIP_VOCAB_SIZE:
        return open_clip.SimpleTokenizer(context_length=context_length)
    raise ValueError(f"text_cfg.vocab_size is {vocab_size}; pass tokenizer=..., or use {_TINY_VOCAB_SIZE} (the list "
                     f"of {_TINY_NAME}) or {_CLIP_VOCAB_SIZE} (CLIP's)")


def _assemble(
    model: nn.Module, tokenizer: Tokenizer, preprocess_cfg: Mapping, *, name: str, fingerprint: str
) -> LoadedClip:
    visual = model.visual
    known = dict(preprocess_cfg) | {"size": visual.image_size}
    preprocess = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), known))
    open_clip.set_model_preprocess_cfg(model, vars(preprocess))
    info = ClipInfo(
        name=name,
        image_size_px=visual.image_size[0],
        patch_size=visual.patch_size[0],
        grid=visual.grid_size[0],
        depth=len(visual.transformer.resblocks),
        width=visual.transformer.width,
        heads=visual.transformer.resblocks[0].attn.num_heads,
        embed_dim=visual.output_dim,
        context_length=model.context_length,
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        interpolation=preprocess.interpolation,
    )
    return LoadedClip(model, tokenizer, image_transform_v2(preprocess, is_train=False), info, fingerprint)

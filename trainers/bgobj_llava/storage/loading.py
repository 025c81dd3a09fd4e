"""Loading a finished LLaVA: from the hub, from a folder, or the one that ships.

Every name ends in a local folder of configuration, tokenizer, image processor and safetensors; nothing else is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from clip_ext.weights import compute_fingerprint
from trainers.adapters import BaseModel
from trainers.bgobj_llava.storage.load_report import LoadReport, describe_loading, describe_random
from trainers.model_folders import find_model_folder, find_weight_files, hash_weight_files

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHIPPED = {"tiny_llava": ASSETS / "tiny_llava"}
NAME_KEY = "MODEL.BACKBONE.NAME"


@dataclass(frozen=True)
class LoadedLlava:
    """A LLaVA and what has to be known of it.

    Attributes:
        model: In evaluation mode, frozen, on the device.
        tokenizer: As stored; without separators.
        side_px, patch_px: Of the square image and its patches.
        mean, std: Per RGB channel, for pixels in [0, 1].
        fill_rgb: Mean colour in 0-255, for padding.
        report: What was read from where.
        base: Name and fingerprint.
    """

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    side_px: int
    patch_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill_rgb: tuple[int, int, int]
    report: LoadReport
    base: BaseModel

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What decides how pixels become input, in JSON's types."""
        return {
            "side_px": self.side_px, "patch_px": self.patch_px,
            "mean": list(self.mean), "std": list(self.std), "fill_rgb": list(self.fill_rgb),
        }  # fmt: skip


def load_llava(
    name: str,
    *,
    revision: str = "",
    pretrained: bool = True,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    device: torch.device | str = "cpu",
) -> LoadedLlava:
    """Load a LLaVA-1.5: a CLIP tower, a projector, and a Llama.

    Args:
        name: Hub id, local folder, or `tiny_llava`.
        revision: Branch, tag or commit of a hub id; "" = the newest.
        pretrained: False: the configuration's shapes with random weights.
        dtype: Of the weights.
        attn: Attention of the language model: sdpa, eager or flash_attention_2. The tower takes sdpa instead of the last.
        device: Where the model goes.
    Raises:
        FileNotFoundError: If the folder, or a file in it, is missing.
        OSError: If the hub has no such model, or cannot be asked.
        ValueError: If it is no LLaVA that this package can drive: all reasons at once.
    """
    folder = find_folder(name, revision)
    problems = find_problems(folder, pretrained=pretrained)
    if problems:
        raise ValueError("\n  ".join([f"{NAME_KEY} is {name!r}: {len(problems)} problem(s) in {folder}:", *problems]))
    config = LlavaConfig.from_pretrained(folder)
    implementation = {"text_config": attn, "vision_config": "eager" if attn == "eager" else "sdpa"}
    if pretrained:
        files = find_weight_files(folder)
        model, info = LlavaForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation=implementation, use_safetensors=True,
            output_loading_info=True, local_files_only=True,
        )  # fmt: skip
        report, fingerprint = describe_loading(model, files, info), hash_weight_files(files)
    else:
        logger.warning("RANDOM WEIGHTS: MODEL.BACKBONE.PRETRAINED is False; %s gives shapes and tokenizer only", name)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=implementation)
        report, fingerprint = describe_random(model), compute_fingerprint(model.state_dict())
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    mean, std = (tuple(float(value) for value in values) for values in (processor.image_mean, processor.image_std))
    return LoadedLlava(
        model=model.requires_grad_(False).eval().to(device),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        side_px=config.vision_config.image_size,
        patch_px=config.vision_config.patch_size,
        mean=mean,
        std=std,
        fill_rgb=tuple(int(255 * value) for value in mean),  # truncated, as in LLaVA's own padding
        report=report,
        base=BaseModel(name, fingerprint),
    )


def find_folder(name: str, revision: str = "") -> Path:
    """Return the local folder of a LLaVA; see `find_model_folder`."""
    return find_model_folder(name, revision, key=NAME_KEY, shipped=SHIPPED, example="llava-hf/llava-1.5-7b-hf")


def find_problems(folder: Path, *, pretrained: bool) -> list[str]:
    """Return one message per reason why a folder holds no LLaVA that this package can drive.

    Raises:
        FileNotFoundError: If it has no configuration.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    content = json.loads(file.read_text("utf-8"))
    if content.get("model_type") != "llava":
        return [f"model_type is {content.get('model_type')!r}; expected 'llava' (LLaVA-1.5 in Hugging Face's format)"]
    config = LlavaConfig.from_pretrained(folder)
    problems = _problems_with_config(config)
    if pretrained:
        problems += _problems_with_weights(folder)
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        problems.append("it has no preprocessor_config.json")
    else:
        problems += _problems_with_processor(folder, config)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        problems.append("it has no tokenizer.json")
    return problems


def _problems_with_config(config: LlavaConfig) -> list[str]:
    problems, vision, layer = [], config.vision_config, config.vision_feature_layer
    for part, expected in (("vision_config", "clip_vision_model"), ("text_config", "llama")):
        found = getattr(config, part).model_type
        if found != expected:
            problems.append(f"{part}.model_type is {found!r}; expected {expected!r}")
            return problems
    if vision.image_size % vision.patch_size:
        problems.append(f"image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}")
    if not isinstance(layer, int):
        problems.append(f"vision_feature_layer is {layer!r}; expected one layer, not a list")
    elif not -vision.num_hidden_layers <= layer <= vision.num_hidden_layers:
        problems.append(f"vision_feature_layer is {layer}; expected a layer of {vision.num_hidden_layers}")
    if config.vision_feature_select_strategy != "default":
        problems.append(
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; expected 'default' (without CLS)"
        )
    return problems


def _problems_with_weights(folder: Path) -> list[str]:
    if find_weight_files(folder):
        return []
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        return [f"its weights are pickles ({', '.join(pickles[:3])}), which are not read; expected *.safetensors"]
    return ["it has no weights: expected model.safetensors, or MODEL.BACKBONE.PRETRAINED False for random ones"]


def _problems_with_processor(folder: Path, config: LlavaConfig) -> list[str]:
    crop: Mapping[str, int] = CLIPImageProcessor.from_pretrained(folder, local_files_only=True).crop_size
    side = config.vision_config.image_size
    if (crop["height"], crop["width"]) == (side, side):
        return []
    return [f"its processor makes images of {crop['height']} x {crop['width']} px; its tower wants {side} x {side}"]

"""From a config to a model that can train and answer. Imported when something is built: it needs transformers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from clip_ext.style_names import StyleNames
from trainers.gated_blip2 import settings
from trainers.gated_blip2.cache.key import CacheKey, cache_folder, feature_key
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.data import PictureViews
from trainers.gated_blip2.gates import NODE, Parts
from trainers.gated_blip2.image_view import ImageViewFacts
from trainers.gated_blip2.loading import LoadedBlip2, load_blip2
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS, Preset, build_conditioner, trainable_parts
from trainers.gated_blip2.prompts import PromptEncoder
from trainers.gated_blip2.style.encoder import StyleEncoder, StyleOutput, load_style_encoder
from trainers.gated_blip2.style.files import find_style_file
from trainers.gated_blip2.style.networks import width_of
from trainers.gated_blip2.style.source import StyleSource, describe_encoder
from trainers.parameter_groups import Trainables

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Towers:
    """The frozen models, and how they see pictures.

    Attributes:
        loaded: The BLIP-2.
        style_encoder: None where the preset has no gates and no style encoder is named.
        views: Of both.
    """

    loaded: LoadedBlip2
    style_encoder: StyleEncoder | None
    views: PictureViews


@dataclass(frozen=True, eq=False)
class GatedSystem:
    """A model with all that belongs to it.

    Attributes:
        towers: Around which it is built.
        preset: What it trains.
        model: BLIP-2 with its gates.
        style_source: What the gates take for a picture's style; None without gates.
        encoder: Of the prompt.
        parts: Group -> (name, parameter) pairs of what trains.
        trainables: These parameters as a module.
    """

    towers: Towers
    preset: Preset
    model: GatedBlip2Model
    style_source: StyleSource | None
    encoder: PromptEncoder
    parts: Parts
    trainables: Trainables

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Stable name -> trainable parameter."""
        return dict(pair for pairs in self.parts.values() for pair in pairs)

    def style_of(
        self, rows: Rows, labels: Tensor, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Return the style vectors, (B, W), fp32; None without gates.

        Args:
            rows: Features of the pictures, on the device.
            labels: Styles of the data, (B,), -1 = unknown, on the device.
            training: Whether styles are dropped and shuffled.
            generator: Of these random choices.
        """
        if self.style_source is None:
            return None
        output = StyleOutput(rows.features, rows.logits)
        return self.style_source(output, labels, training=training, generator=generator)


def load_towers(cfg: CfgNode, prec: str, device: torch.device) -> Towers:
    """Load BLIP-2 and the style encoder, both frozen.

    Args:
        cfg: Full config.
        prec: Resolved precision.
        device: Where they go.
    """
    node, backbone = cfg.TRAINER.GATEDBLIP2, cfg.MODEL.BACKBONE
    preset = PRESETS[node.PRESET]
    loaded = load_blip2(
        backbone.NAME, pretrained=backbone.PRETRAINED, prec=prec, device=device, trains_qformer=preset.trains_qformer,
        trains_post_ln=preset.post_ln, text_branch=preset.text_branch, input_size_px=settings.input_size(cfg),
        interpolate_pos=node.INTERPOLATE_POS, quant=node.QUANT,
    )  # fmt: skip
    style = _load_style(node, device)
    names = None if style is None or style.class_names is None else StyleNames(style.class_names)
    samples = node.ANSWER.TRAIN == "sample"
    views = PictureViews(build_view(loaded.view), None if style is None else style.view.transform(), names, samples)
    return Towers(loaded, style, views)


def _load_style(node: CfgNode, device: torch.device) -> StyleEncoder | None:
    """Load the style encoder; where none is needed, one that is there serves for rows of answers and shared caches."""
    style = node.STYLE
    if not settings.needs_style_encoder(node) and find_style_file(style.CHECKPOINT) is None:
        logger.info("No style encoder: %s.STYLE.CHECKPOINT is %r", NODE, style.CHECKPOINT)
        return None
    return load_style_encoder(
        style.ARCH, style.CHECKPOINT, classes_file=style.CLASSES_FILE, fallback=style.FALLBACK, device=device
    )


def build_view(facts: ImageViewFacts) -> transforms.Compose:
    """Return what turns an RGB image of any size into BLIP-2's input, (3, S, S), fp32."""
    side = (facts.side_px, facts.side_px)
    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=InterpolationMode(facts.resample)),
            transforms.ToTensor(),
            transforms.Normalize(facts.mean, facts.std),
        ]
    )


def build_system(towers: Towers, node: CfgNode, prec: str, device: torch.device) -> GatedSystem:
    """Build gates around the frozen models and mark what trains; it is held in fp32.

    Args:
        towers: From `load_towers`.
        node: `TRAINER.GATEDBLIP2`.
        prec: Resolved precision.
        device: Where everything is.
    """
    preset, loaded = PRESETS[node.PRESET], towers.loaded
    source = _build_source(node, towers.style_encoder)
    width = 0 if source is None else source.width
    conditioner = build_conditioner(preset, loaded.model, width, settings.gate_options(node))
    for module in (source, conditioner):
        if module is not None:
            module.to(device)
    model = GatedBlip2Model(loaded, conditioner=conditioner, post_ln_trains=preset.post_ln, prec=prec, grad_ckpt=node.GRAD_CKPT)
    parts = trainable_parts(preset, loaded.model, conditioner, source)
    for _, parameter in (pair for pairs in parts.values() for pair in pairs):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return GatedSystem(towers, preset, model, source, build_encoder(loaded, node), parts, Trainables(parts))


def _build_source(node: CfgNode, encoder: StyleEncoder | None) -> StyleSource | None:
    if not settings.has_gates(node):
        return None
    names = None if encoder is None else encoder.class_names
    width = width_of(node.STYLE.ARCH) if encoder is None else encoder.width
    n_classes = None if names is None else len(names)
    told = "" if encoder is None else describe_encoder(encoder, node.STYLE.CHECKPOINT)
    return StyleSource(node.STYLE.SOURCE, width=width, n_classes=n_classes, dropout=node.STYLE.DROPOUT, encoder=told)


def build_encoder(loaded: LoadedBlip2, node: CfgNode) -> PromptEncoder:
    """Return what turns questions and answers into token ids."""
    return PromptEncoder(
        loaded.tokenizer, node.PROMPT.TEMPLATE, max_question_tokens=node.PROMPT.MAX_QUESTION_TOKENS,
        max_positions=loaded.max_positions, n_queries=loaded.n_queries,
    )  # fmt: skip


def cache_of(towers: Towers, node: CfgNode) -> tuple[Path, CacheKey]:
    """Return the folder and the key of the features of a model."""
    loaded, style = towers.loaded, towers.style_encoder
    facts = {}
    if style is not None:
        facts = {"style_arch": style.arch, "style_sha256": style.sha256, "style_view": style.view}
        facts["n_styles"] = len(style.class_names or ())
    post_ln = not PRESETS[node.PRESET].post_ln
    key = feature_key(base=loaded.base, image_view=loaded.view, dtype=loaded.dtype, post_ln=post_ln, **facts)
    return cache_folder(node.CACHE.DIR, key), key

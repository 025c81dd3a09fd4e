"""From a config to a model that can train and answer. Imported when something is built: it needs transformers and peft."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.model.scopes import Parts, add_lora, prepare_trainables, trainable_parts
from trainers.bgobj_llava.model.sequence import longest_length
from trainers.bgobj_llava.samples import Turns
from trainers.bgobj_llava.settings import WEIGHT_DTYPES, lr_multiplier
from trainers.bgobj_llava.storage.loading import LoadedLlava, load_llava
from trainers.parameter_groups import ParameterGroup, Trainables

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class System:
    """A model with all that belongs to it.

    Attributes:
        loaded: The LLaVA around which it is built.
        model: With LoRA layers, if the scope asks for them.
        encoder: Of the prompt, with the tokenizer that knows the separators.
        parts: Group -> (name, parameter) pairs of what trains.
        trainables: These parameters as a module.
    """

    loaded: LoadedLlava
    model: BgObjLlava
    encoder: PromptEncoder
    parts: Parts
    trainables: Trainables

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Stable name -> trainable parameter."""
        return dict(pair for pairs in self.parts.values() for pair in pairs)


def load_base(cfg: CfgNode, prec: str, device: torch.device) -> LoadedLlava:
    """Load the LLaVA that `MODEL.BACKBONE.NAME` names, frozen.

    Args:
        cfg: Full config.
        prec: Resolved precision.
        device: Where it goes.
    """
    node, backbone = cfg.TRAINER.BGOBJLLAVA, cfg.MODEL.BACKBONE
    loaded = load_llava(
        backbone.NAME, revision=node.REVISION, pretrained=backbone.PRETRAINED, dtype=WEIGHT_DTYPES[prec], attn=node.ATTN,
        device=device,
    )  # fmt: skip
    loaded.report.log()
    return loaded


def build_system(loaded: LoadedLlava, options: ModelOptions, node: CfgNode) -> System:
    """Build the model around a LLaVA and mark what trains.

    Args:
        loaded: The LLaVA.
        options: What is built around it.
        node: `TRAINER.BGOBJLLAVA`.
    """
    model = BgObjLlava(loaded.model, loaded.tokenizer, options).to(loaded.model.device)
    scope = node.TRAIN.SCOPE
    if scope == "lora":
        add_lora(model, r=node.LORA.R, alpha=node.LORA.ALPHA, dropout=node.LORA.DROPOUT)
    parts = trainable_parts(model, scope, last_k=node.TRAIN.LAST_K)
    return System(loaded, model, PromptEncoder(model.tokenizer), parts, prepare_trainables(model, parts))


def parameter_groups(parts: Parts, scope: str, weight_decay: float) -> list[ParameterGroup]:
    """Declare how the parts train."""
    return [
        ParameterGroup(name, [parameter for _, parameter in pairs], lr_multiplier(name, scope), weight_decay)
        for name, pairs in parts.items()
    ]


def length_rule(loaded: LoadedLlava, options: ModelOptions) -> Callable[[Turns], int]:
    """Return (turns -> most tokens that the sequence can have, image included); it raises for text that cannot be encoded."""
    encoder, n_patches = PromptEncoder(loaded.tokenizer), (loaded.side_px // loaded.patch_px) ** 2

    def length_of(turns: Turns) -> int:
        return longest_length(encoder.encode(turns), n_patches, options)

    return length_of


def describe_shapes(model: BgObjLlava) -> str:
    """Return the model's sizes and choices in three lines."""
    info = model.info
    return (
        f"Image {info.side_px} x {info.side_px} px, {info.grid} x {info.grid} patches of {info.patch_px} px; features of block "
        f"{info.feature_block} of {info.n_vision_blocks}, width {info.d_vision}\n"
        f"Language model: {info.n_llm_layers} layers of width {info.d_model}, {info.n_fusion_layers} fusion layers before it, "
        f"{info.vocab_rows:,} embedding rows, separators {dict(info.separator_ids) or 'none'}\n"
        f"Options: {model.options}"
    )

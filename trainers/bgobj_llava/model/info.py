"""Sizes and special ids of a LLaVA, read from the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import LlavaConfig, PreTrainedTokenizerBase

from trainers.bgobj_llava.model.sequence import SEPARATORS


@dataclass(frozen=True)
class ModelInfo:
    """What other parts need to know of a model.

    Attributes:
        side_px: Side of the square input image.
        patch_px: Side of a patch.
        grid: Patches per side.
        n_patches: Patches of an image, P.
        d_vision: Width of the vision tower.
        d_model: Width of the language model.
        n_vision_blocks: Blocks of the vision tower.
        feature_block: The block whose output is the feature, from 1.
        n_llm_layers: Layers of the language model.
        n_fusion_layers: Layers before it.
        vocab_rows: Rows of its embedding.
        n_tokens: Tokens of its tokenizer, separators not counted.
        image_id: Token id that stands for a patch.
        pad_id: Of padding; None if the tokenizer has none.
        eos_id: Of the end of an answer.
        separator_ids: Name -> token id, in the order of the sequence; empty without separators.
    """

    side_px: int
    patch_px: int
    grid: int
    n_patches: int
    d_vision: int
    d_model: int
    n_vision_blocks: int
    feature_block: int
    n_llm_layers: int
    n_fusion_layers: int
    vocab_rows: int
    n_tokens: int
    image_id: int
    pad_id: int | None
    eos_id: int
    separator_ids: Mapping[str, int]

    @property
    def n_separators(self) -> int:
        return len(self.separator_ids)

    @property
    def image_token_id(self) -> int:
        return self.image_id

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that must not be generated: image, padding, separators and rows that no token uses, ascending."""
        special = {self.image_id, self.pad_id, *self.separator_ids.values()} - {None}
        return tuple(sorted(special | set(range(self.n_tokens, self.vocab_rows))))


def find_llava_problems(llava: nn.Module) -> list[str]:
    """List what keeps a LLaVA from being driven here."""
    config, problems = llava.config, []
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    if side % patch:
        problems.append(f"the image side is {side} px; it must be a multiple of the patch side, {patch} px")
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        problems.append(f"vision_feature_layer is {layer!r}; expected one number")
    elif not 1 <= feature_block(config) <= config.vision_config.num_hidden_layers:
        problems.append(f"vision_feature_layer is {layer}; the tower has {config.vision_config.num_hidden_layers} blocks")
    if config.vision_feature_select_strategy != "default":
        problems.append(f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; expected 'default'")
    return problems


def read_info(
    llava: nn.Module, tokenizer: PreTrainedTokenizerBase, *, separator_ids: Mapping[str, int], n_fusion_layers: int
) -> ModelInfo:
    """Collect the sizes of a LLaVA.

    Args:
        llava: transformers' `LlavaForConditionalGeneration`.
        tokenizer: Its tokenizer, separators included.
        separator_ids: Name -> token id.
        n_fusion_layers: Layers before the language model.
    """
    config = llava.config
    vision, text = config.vision_config, config.text_config
    grid = vision.image_size // vision.patch_size
    return ModelInfo(
        side_px=vision.image_size,
        patch_px=vision.patch_size,
        grid=grid,
        n_patches=grid**2,
        d_vision=vision.hidden_size,
        d_model=text.hidden_size,
        n_vision_blocks=vision.num_hidden_layers,
        feature_block=feature_block(config),
        n_llm_layers=text.num_hidden_layers,
        n_fusion_layers=n_fusion_layers,
        vocab_rows=llava.get_input_embeddings().num_embeddings,
        n_tokens=len(tokenizer) - len(separator_ids),
        image_id=config.image_token_id,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        separator_ids={name: separator_ids[name] for names in SEPARATORS.values() for name in names if name in separator_ids},
    )


def feature_block(config: LlavaConfig) -> int:
    """Return the block whose output is the feature: -2 means the last but one, as hidden state 0 is what enters block 1."""
    layer = config.vision_feature_layer
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer

"""Whole random GatedBLIP2s on the CPU, what they are asked, and the same questions put to Hugging Face's own BLIP-2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_blip2s import PATCH_PX, SIDE_PX, random_blip2, word_tokenizer
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration

from trainers.adapters import BaseModel
from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.image_view import MEAN, STD, ImageViewFacts
from trainers.gated_blip2.loading import LoadedBlip2
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS, build_conditioner, trainable_parts
from trainers.gated_blip2.prompts import PromptEncoder, TextBatch, collate, find_stop_id
from trainers.gated_blip2.weights import COMPUTE_DTYPES

STYLE_WIDTH = 12
TEMPLATE = "Question: {question} Short answer:"
ASKED = (
    ("what colour is the picture?", "red"),
    ("who painted it?", "one two"),
    ("which style is a thing of the picture?", "green"),
)


def wrap(blip2: Blip2ForConditionalGeneration) -> LoadedBlip2:
    """What loading returns, around a model that is there already."""
    tokenizer = word_tokenizer()
    return LoadedBlip2(
        blip2.requires_grad_(False), tokenizer, BaseModel("random", "0" * 64), ImageViewFacts(SIDE_PX, MEAN, STD, "bicubic"),
        (SIDE_PX // PATCH_PX) ** 2 + 1, find_stop_id(tokenizer), blip2.language_model.lm_head.weight.dtype,
    )  # fmt: skip


def talkative(blip2: Blip2ForConditionalGeneration) -> Blip2ForConditionalGeneration:
    """Let its answers depend on where it is and what it saw, so that they differ and some end."""
    with torch.no_grad():
        decoder = blip2.language_model.model.decoder
        decoder.embed_positions.weight.mul_(8)
        decoder.embed_tokens.weight.mul_(4)
        blip2.language_projection.weight.mul_(4)
    return blip2


def gated_model(
    preset: str = "gates_proj",
    options: GateOptions | None = None,
    *,
    prec: str = "fp32",
    attn: str = "eager",
    stir: float = 0.0,
    seed: int = 0,
    thaw: bool = False,
    grad_ckpt: bool = False,
) -> GatedBlip2Model:
    """A random GatedBLIP2 of a preset, in evaluation mode.

    Args:
        stir: Spread of noise on the gates' parameters; 0 leaves them fresh.
        thaw: Hold what the preset trains in fp32, and let it have gradients.
    """
    chosen = PRESETS[preset]
    blip2 = talkative(random_blip2(dtype=COMPUTE_DTYPES[prec], attn=attn, text_input=chosen.text_branch, seed=seed))
    if thaw and chosen.trains_qformer:
        blip2.qformer.float()
    torch.manual_seed(5)
    conditioner = build_conditioner(chosen, blip2, STYLE_WIDTH, options or GateOptions(hidden=16))
    stir_up(conditioner, stir)
    loaded = wrap(blip2)
    model = GatedBlip2Model(loaded, conditioner=conditioner, post_ln_trains=chosen.post_ln, prec=prec, grad_ckpt=grad_ckpt)
    if thaw:
        for _, parameter in (pair for pairs in trainable_parts(chosen, blip2, conditioner).values() for pair in pairs):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model.eval()


def stir_up(module: nn.Module | None, spread: float) -> None:
    """Add noise to all parameters of a module."""
    if module is None or not spread:
        return
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)


def encoder(**options: int) -> PromptEncoder:
    """The prompt encoder of the random models."""
    return PromptEncoder(
        word_tokenizer(), TEMPLATE, **{"max_question_tokens": 16, "max_positions": 128, "n_queries": 4} | options
    )


def texts(asked: Sequence[tuple[str, str | None]] = ASKED, *, answers: bool = True, side: str = "right") -> TextBatch:
    """A batch of questions, with answers or without."""
    own = encoder()
    rows = [own.encode(question, answer if answers else None) for question, answer in asked]
    return collate(rows, pad_id=own.pad_id, side=side)


def pixels(n: int = len(ASKED), side_px: int = SIDE_PX) -> Tensor:
    return torch.randn(n, 3, side_px, side_px, generator=torch.Generator().manual_seed(2))


def styles(n: int = len(ASKED)) -> Tensor:
    return torch.randn(n, STYLE_WIDTH, generator=torch.Generator().manual_seed(3))


def stock_inputs(blip2: Blip2ForConditionalGeneration, text: TextBatch) -> dict[str, Tensor]:
    """The same rows as Hugging Face's own forward and generate take them: image tokens where the queries go."""
    shape = (len(text), blip2.config.num_query_tokens)
    images = torch.full(shape, blip2.config.image_token_index)
    return {
        "pixel_values": pixels(len(text)).to(blip2.dtype),
        "input_ids": torch.cat([images, text.ids], dim=1),
        "attention_mask": torch.cat([torch.ones(shape, dtype=torch.long), text.mask.long()], dim=1),
    }

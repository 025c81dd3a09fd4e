"""Random LLaVAs, small enough for every test, and their tokenizer."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

SPARE_ROWS = 8  # embedding rows beyond the tokenizer, as LLaVA-1.5 has
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: ASSISTANT:\nAnswer the question using a single word or phrase.",
    "what colour is the circle square triangle letter digit clock? how many objects are there? where is it?",
    "red green blue yellow black white one two three left right above below nine ten striped dotted yes no",
    "background end of background object end of object",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of about eighty words that covers LLaVA's prompt."""
    return build_word_tokenizer(TEXTS)


def tiny_config(
    *,
    tokenizer: PreTrainedTokenizerFast,
    side_px: int = 56,
    patch_px: int = 14,
    vision: tuple[int, int] = (4, 64),
    llm: tuple[int, int] = (4, 96),
) -> LlavaConfig:
    """Return the config of a LLaVA; `vision` and `llm` are (blocks, width)."""
    tower = CLIPVisionConfig(
        image_size=side_px,
        patch_size=patch_px,
        num_hidden_layers=vision[0],
        hidden_size=vision[1],
        intermediate_size=2 * vision[1],
        num_attention_heads=vision[1] // 16,
        projection_dim=vision[1],
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer) + SPARE_ROWS,
        num_hidden_layers=llm[0],
        hidden_size=llm[1],
        intermediate_size=2 * llm[1],
        num_attention_heads=llm[1] // 24,
        num_key_value_heads=llm[1] // 24,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(side_px // patch_px) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def random_llava(
    side_px: int = 56,
    patch_px: int = 14,
    vision: tuple[int, int] = (4, 64),
    llm: tuple[int, int] = (4, 96),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn: str = "sdpa",
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """Return a random LLaVA in evaluation mode and its tokenizer; equal seeds give equal weights."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer=tokenizer, side_px=side_px, patch_px=patch_px, vision=vision, llm=llm)
    config._attn_implementation = attn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():  # the libraries' initial weights are too small to tell pictures apart
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.08)
    return model.to(dtype).eval(), tokenizer

"""Random BLIP-2s small enough for every test, and a word tokenizer for their OPT."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

SIDE_PX, PATCH_PX, N_QUERIES = 16, 8, 4
WORDS = (
    "question : what colour style is the picture of a thing ? short answer : which who painted it when where how many one two "
    "three red green blue plain striped dotted , . \n"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that starts texts with a start token and knows the newline."""
    return build_word_tokenizer([WORDS])


def tiny_config(*, text_input: bool = False) -> Blip2Config:
    """ViT 2 x 32 on 16 px, Q-Former 4 x 32 with cross-attention in layers 1 and 3 (from 1), 4 queries, OPT 2 x 32."""
    tokenizer = word_tokenizer()
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE_PX,
        patch_size=PATCH_PX,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, encoder_hidden_size=32,
        cross_attention_frequency=2, max_position_embeddings=64, use_qformer_text_input=text_input,
    )  # fmt: skip
    text = OPTConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, word_embed_proj_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("\n"), pad_token_id=tokenizer.pad_token_id, dropout=0.0,
    )  # fmt: skip
    return Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=N_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )  # fmt: skip


def attention_of_parts(attn: str) -> dict[str, str]:
    """What transformers is told; before 5.13 its Q-Former has eager attention only."""
    qformer = attn if getattr(Blip2QFormerModel, "_supports_sdpa", False) else "eager"
    return {"vision_config": attn, "qformer_config": qformer, "text_config": attn}


def random_blip2(
    *, dtype: torch.dtype = torch.float32, text_input: bool = False, attn: str = "eager", seed: int = 0
) -> Blip2ForConditionalGeneration:
    """A BLIP-2 whose every parameter is random, so that nothing is hidden by zeros; in evaluation mode."""
    config = tiny_config(text_input=text_input)
    model = Blip2ForConditionalGeneration._from_config(config, attn_implementation=attention_of_parts(attn))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.ndim < 2 or "query_tokens" in name else 0.15
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0))
    return model.to(dtype).eval()


def write_blip2(folder: Path, *, seed: int = 0) -> Path:
    """Write a random BLIP-2 as a folder in transformers' layout: weights, tokenizer, image processor; return it."""
    folder = Path(folder)
    random_blip2(seed=seed).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    BlipImageProcessor(
        size={"height": SIDE_PX, "width": SIDE_PX},
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    ).save_pretrained(folder)
    return folder

"""Random GPT-2s with a tokenizer of the miniature world, built in memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

ASSET = Path(__file__).parents[3] / "trainers" / "viecap" / "assets" / "tiny_gpt2"


@lru_cache(maxsize=1)
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of `tiny_gpt2`."""
    return AutoTokenizer.from_pretrained(ASSET)


def random_gpt2(
    width: int = 32, layers: int = 2, heads: int = 2, seed: int = 0, dropout: float = 0.1
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Build a random GPT-2 with 128 positions, in evaluation mode, and the tokenizer of `tiny_gpt2`."""
    tokenizer, end = tiny_tokenizer(), tiny_tokenizer().eos_token_id
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=end, eos_token_id=end,
        ))  # fmt: skip
    # Releases of transformers draw their weights in different orders.
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval(), tokenizer

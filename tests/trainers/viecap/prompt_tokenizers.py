"""The tokenizers that hard prompts are tested on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["LONG_NAMES", "REAL", "gpt2_tokenizer", "glueing_tokenizer", "letter_tokenizer"]

# Ten names of five tokens for `letter_tokenizer`: a blank and four letters.
LONG_NAMES = ("bcdf", "cdfg", "dfgh", "fghj", "ghjk", "hjkl", "jklm", "klmn", "lmnp", "mnpq")

REAL = pytest.mark.weights


@lru_cache(maxsize=1)
def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """The real GPT-2's, from Hugging Face's cache or the folder VIECAP_GPT2; skips the test without one."""
    try:
        return AutoTokenizer.from_pretrained(os.environ.get("VIECAP_GPT2", "gpt2"), local_files_only=True)
    except OSError:
        pytest.skip("the files of gpt2's tokenizer are neither in Hugging Face's cache nor in VIECAP_GPT2")


@lru_cache(maxsize=1)
def letter_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE that knows the template's words as GPT-2 does, and single letters besides."""
    return _train(["There are something, something in image."] * 9, size=320)


@lru_cache(maxsize=1)
def glueing_tokenizer() -> PreTrainedTokenizerBase:
    """One that, like GPT-2's, makes one token of a full stop and a comma, so that "a.m." has no ids of its own.

    " something" is several tokens.
    """
    return _train(["There are in image.", "at 7 a.m., at 8 p.m., at noon."] * 9, size=320)


def _train(texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=9, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

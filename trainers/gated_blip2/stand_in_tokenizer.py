"""A tokenizer for a model that has a configuration only: its special ids, and a token for each byte.

It lets benchmarks and dry runs of randomly initialised models start without a network. What it writes means nothing.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Blip2Config, PreTrainedTokenizerFast

START, PAD, UNKNOWN, IMAGE, NEWLINE = "</s>", "<pad>", "<unk>", "<image>", "Ċ"  # Ċ is how byte tokenizers write the newline


def build_stand_in_tokenizer(config: Blip2Config) -> PreTrainedTokenizerFast:
    """Build a byte tokenizer with the ids of start, padding, newline and image that a configuration names.

    Raises:
        ValueError: If the vocabulary is too small for 256 bytes.
    """
    text = config.text_config
    vocabulary = {START: text.bos_token_id, PAD: text.pad_token_id, NEWLINE: text.eos_token_id, IMAGE: config.image_token_index}
    free = (number for number in range(text.vocab_size) if number not in set(vocabulary.values()))
    names = [UNKNOWN, *sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {NEWLINE})]
    found = dict(zip(names, free, strict=False))
    if len(found) < len(names):
        needed = len({*names, *vocabulary})
        raise ValueError(f"the vocabulary has {text.vocab_size} rows; a stand-in tokenizer needs {needed}")
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **found}, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, PAD, UNKNOWN, IMAGE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=START, pad_token=PAD, padding_side="right",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip

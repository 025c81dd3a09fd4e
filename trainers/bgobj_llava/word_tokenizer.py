"""A word-level tokenizer for language models of a closed vocabulary, with the special tokens of LLaVA-1.5."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNKNOWN, START, END, IMAGE, PAD = "<unk>", "<s>", "</s>", "<image>", "<pad>"


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer that knows whole words, single punctuation marks and the newline.

    Ids follow LLaVA-1.5: unknown 0, start 1, end 2, the words, then image and padding. Text is lower-cased; a start token
    comes first. Offsets point into the original text.

    Args:
        words: Texts whose words make up the vocabulary; order and repetition do not matter.
    """
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[ \t]+"), "removed"),
        pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"),
    ])  # fmt: skip
    lower = normalizers.Lowercase()
    known = {piece for text in words for piece, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    specials = [UNKNOWN, START, END]
    vocabulary = {word: number for number, word in enumerate([*specials, *sorted(known - {*specials, IMAGE, PAD}), IMAGE, PAD])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    # WordLevel forgets the spaces between words; WordPiece's decoder without a prefix puts them back.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=START, eos_token=END, pad_token=PAD, padding_side="right",
        additional_special_tokens=[IMAGE], clean_up_tokenization_spaces=False,
    )  # fmt: skip

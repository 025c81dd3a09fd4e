"""Trainable tokens around the background and the objects."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trainers.bgobj_llava.model.options import NODE
from trainers.bgobj_llava.model.sequence import BG_END, BG_OBJ, BG_START, OBJ_END, OBJ_START, SEPARATORS

TOKENS = {name: f"<{name}>" for name in (BG_START, BG_END, OBJ_START, OBJ_END, BG_OBJ)}
WORDS = {
    BG_START: "background",
    BG_END: "end of background",
    OBJ_START: "object",
    OBJ_END: "end of object",
    BG_OBJ: "end of background",
}


def add_separators(
    tokenizer: PreTrainedTokenizerBase, style: str, n_rows: int
) -> tuple[PreTrainedTokenizerBase, dict[str, int]]:
    """Give the separators the first token ids that a model has but its tokenizer does not use.

    Args:
        tokenizer: Stays as it is; one that has the separators already keeps their ids.
        style: Key of `SEPARATORS`.
        n_rows: Rows of the model's embedding.

    Returns:
        A tokenizer with the separators, and name -> id.

    Raises:
        ValueError: If the embedding has too few spare rows.
    """
    tokens = [TOKENS[name] for name in SEPARATORS[style]]
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        if len(tokenizer) + len(missing) > n_rows:
            raise ValueError(
                f"{NODE}.SEP.STYLE is {style!r}, which needs {len(missing)} token ids from {len(tokenizer)} on, and the "
                f"model's embedding has {n_rows} rows; use another style, or a model with spare rows"
            )
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    return tokenizer, {name: tokenizer.convert_tokens_to_ids(TOKENS[name]) for name in SEPARATORS[style]}


class Separators(nn.Module):
    """Embeddings of the separators, in fp32 whatever the model's dtype.

    Attributes:
        table: (k, d), in the order of `SEPARATORS[style]`.
        ids: Name -> token id.
    """

    def __init__(self, table: Tensor, ids: Mapping[str, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(table.float())
        self.ids = dict(ids)


def build_separators(
    embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int], *, init: str, seed: int
) -> Separators:
    """Build separators near the model's own words.

    Args:
        embedding: The language model's.
        tokenizer: The language model's.
        ids: Name of each separator -> its token id.
        init: `words`: mean embedding of the tokens of its description; `random`: normal, spread as the embedding.
        seed: Of `random`.
    """
    weight = embedding.weight.detach().float()
    if init == "random":
        noise = torch.randn(len(ids), weight.shape[1], generator=torch.Generator().manual_seed(seed))
        return Separators(noise.to(weight.device) * weight.std(), ids)
    rows = [weight[tokenizer(WORDS[name], add_special_tokens=False)["input_ids"]].mean(dim=0) for name in ids]
    return Separators(torch.stack(rows), ids)

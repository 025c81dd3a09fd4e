"""Runs the text tower of an open_clip model in batches that are no longer than their longest text.

open_clip's `encode_text` always computes the whole context (77 positions). With a causal mask, what follows a text's
end token cannot reach its feature, so here the context is cut to the batch's longest end-of-text position; the features
are the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from clip_ext.loader import LoadedClip

# What open_clip's CLIP holds flat and its TextTransformer holds in one module; `release_text_tower` removes them.
_TOWER_PARTS = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "attn_mask")
# Poolings that read the feature at the end token.
_END_POOLED = ("argmax", "eos")


def encode_texts(clip: "LoadedClip", texts: Sequence[str], *, batch: int = 256, normalise: bool = True) -> Tensor:
    """Encode texts, in their order.

    Args:
        clip: A loaded CLIP whose text tower is still in memory.
        texts: T texts; longer ones than the context are truncated as open_clip does (see `find_truncated`).
        batch: Texts per forward, >= 1.
        normalise: Give the features length 1; else they are as the tower returns them.
    Returns:
        Features, (T, E), fp32, on the CPU.
    """
    return encode_tokens(clip.model, clip.tokenizer(list(texts)), batch=batch, normalise=normalise)


@torch.no_grad()
def encode_tokens(model: nn.Module, tokens: Tensor, *, batch: int = 256, normalise: bool = True) -> Tensor:
    """Encode token ids.

    Args:
        model: open_clip `CLIP` or `CustomTextCLIP`.
        tokens: (T, context), long, padded behind the end token.
        batch: Texts per forward, >= 1.
        normalise: Give the features length 1; else they are as the tower returns them.
    Returns:
        Features, (T, E), fp32, on the CPU.
    Raises:
        ValueError: If there is no text, or `batch` is below 1.
        RuntimeError: If the text tower has been released.
    """
    if not len(tokens) or batch < 1:
        raise ValueError(f"got {len(tokens)} texts and batch {batch}; expected at least 1 of each")
    tower = text_tower(model)
    device = next(model.parameters()).device
    lengths = _text_lengths(tower, tokens)
    # Sorted by length, a batch of short texts is never padded to the length of a long one.
    order = lengths.argsort()
    features: list[Tensor] = []
    for rows in order.split(batch):
        part = tokens[rows].to(device)
        if _can_cut(tower):
            out = _encode_cut(tower, part, int(lengths[rows].max()))
        else:
            out = model.encode_text(part)
        features.append((F.normalize(out.float(), dim=-1) if normalise else out.float()).cpu())
    return torch.cat(features)[order.argsort()]


def text_tower(model: nn.Module) -> nn.Module:
    """Return the module that holds the text tower's parts: `model.text` if there is one, else the model itself."""
    tower = getattr(model, "text", model)
    if tower is model and not hasattr(model, "token_embedding"):
        raise RuntimeError("the text tower of this CLIP has been released; load the CLIP again to encode texts")
    return tower


def release_text_tower(model: nn.Module) -> None:
    """Remove the text tower from memory; class names and the text bank suffice from here on."""
    if "text" in model._modules:
        del model.text
        return
    for part in _TOWER_PARTS:
        if hasattr(model, part):
            delattr(model, part)


def find_truncated(clip: "LoadedClip", texts: Sequence[str], tokens: Tensor) -> list[int]:
    """Find the texts that do not fit the context.

    Args:
        clip: Supplies the tokenizer, which truncates silently.
        texts: T texts.
        tokens: Their ids, (T, context).
    Returns:
        Indices of the truncated texts, ascending.
    """
    tower = getattr(clip.model, "text", clip.model)
    if _pool_type(tower) not in _END_POOLED:
        return []
    # Only a text whose end token fills the context can have been cut; it is tokenised again with one more place.
    context = tokens.shape[1]
    full = (_end_positions(tower, tokens) == context - 1).nonzero().flatten().tolist()
    if not full:
        return []
    longer = _end_positions(tower, clip.tokenizer([texts[i] for i in full], context_length=context + 1))
    return [i for i, end in zip(full, longer.tolist(), strict=True) if end == context]


def _pool_type(tower: nn.Module) -> str:
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "")


def _can_cut(tower: nn.Module) -> bool:
    # Without a causal mask, or with a CLS embedding behind the text, later positions do reach the feature.
    return (
        _pool_type(tower) in _END_POOLED
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
    )


def _end_positions(tower: nn.Module, tokens: Tensor) -> Tensor:
    """Return the 0-based position of each row's end token, (T,)."""
    if _pool_type(tower) == "eos":
        eos = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
        return (tokens == eos).int().argmax(dim=-1)
    return tokens.argmax(dim=-1)


def _text_lengths(tower: nn.Module, tokens: Tensor) -> Tensor:
    if not _can_cut(tower):
        return tokens.new_full((len(tokens),), tokens.shape[1])
    return _end_positions(tower, tokens) + 1


def _encode_cut(tower: nn.Module, tokens: Tensor, length: int) -> Tensor:
    """Encode (B, context) ids of which no text is longer than `length`; returns (B, E) in the tower's dtype."""
    dtype = tower.transformer.get_cast_dtype()
    tokens = tokens[:, :length]
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # LayerNorm works per position: normalising the end tokens alone gives the same numbers.
    x = tower.ln_final(x[torch.arange(len(x), device=x.device), _end_positions(tower, tokens)])
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection

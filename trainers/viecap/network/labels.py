"""Where the labels of a batch are: computed from lengths that the host knows, so that nothing waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LabelPositions", "find_label_positions"]


@dataclass(frozen=True, eq=False)
class LabelPositions:
    """Indices into flattened batches, one per caption token, captions in order.

    Attributes:
        predicts: Of the hidden state that predicts the token, in (B * L,); int64.
        tokens: Of the token itself, in the ids (B * T,); int64.
    """

    predicts: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> LabelPositions:
        """Copy to a device; a copy to a GPU is queued, and the host goes on."""
        if device.type != "cuda":
            return LabelPositions(self.predicts.to(device), self.tokens.to(device))
        both = torch.stack([self.predicts, self.tokens]).pin_memory().to(device, non_blocking=True)
        return LabelPositions(both[0], both[1])


def find_label_positions(n_hard: Tensor, n_caption: Tensor, *, soft_tokens: int, width: int) -> LabelPositions:
    """Find what predicts each caption token: token k of a row with h hard tokens is the label of position P + h - 1 + k.

    The same for every order of the prompts, for the caption comes last in all of them.

    Args:
        n_hard: h, hard-prompt tokens per row, (B,), int64, on the CPU.
        n_caption: c, caption tokens per row, (B,), int64, on the CPU.
        soft_tokens: P; 0 without a soft prompt.
        width: T, tokens of the padded ids: a row's hard prompt, its caption, padding.
    Raises:
        ValueError: If a caption does not fit into the ids, or its first token has nothing before it.
    """
    starts = n_hard + soft_tokens
    longest = int((n_hard + n_caption).max())
    if longest > width:
        raise ValueError(f"a row has {longest} hard-prompt and caption tokens; the padded ids have {width}")
    if int(starts.min()) == 0:
        raise ValueError("a caption has neither a soft nor a hard prompt before it; nothing could predict its first token")
    rows = torch.repeat_interleave(n_caption)
    within = torch.arange(len(rows)) - (n_caption.cumsum(0) - n_caption)[rows]
    tokens = rows * width + n_hard[rows] + within
    predicts = rows * (soft_tokens + width) + starts[rows] - 1 + within
    return LabelPositions(predicts, tokens)

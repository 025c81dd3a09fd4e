"""What a run says about itself several times per epoch: mean loss and rates, read from the device only then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Part of an epoch.

    Attributes:
        loss: Mean over its caption tokens, nats.
        captions_per_second, tokens_per_second: Of captions.
        padding_share: Of all positions, [0, 1).
    """

    loss: float
    captions_per_second: float
    tokens_per_second: float
    padding_share: float

    def scalars(self) -> dict[str, float]:
        """Return tag -> value for the scalars' writer."""
        return {
            "train/mean_caption_loss": self.loss,
            "train/captions_per_second": self.captions_per_second,
            "train/tokens_per_second": self.tokens_per_second,
            "train/padding_share": self.padding_share,
        }


class ProgressMeter:
    """Sums over the batches since the last line.

    Args:
        lines_per_epoch: How often a line is due, evenly spaced; 0 = never.
    """

    def __init__(self, lines_per_epoch: int) -> None:
        self._lines = lines_per_epoch
        self.restart()

    def restart(self) -> None:
        """Begin a stretch."""
        self._loss: Tensor | None = None
        self._tokens = self._captions = self._positions = self._timed_tokens = self._real = 0
        self._start = time.perf_counter()

    def add(self, loss: Tensor, *, n_tokens: int, n_captions: int, n_real: int, n_positions: int) -> None:
        """Take a batch; nothing is read from the device.

        Args:
            loss: Summed over the caption tokens, scalar.
            n_tokens: Caption tokens.
            n_captions: Captions.
            n_real: Positions that are no padding.
            n_positions: All of them.
        """
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._tokens += n_tokens
        self._timed_tokens += n_tokens
        self._captions += n_captions
        self._real += n_real
        self._positions += n_positions

    def is_due(self, batch_idx: int, num_batches: int) -> bool:
        """Whether a line is due after a batch."""
        return batch_idx + 1 in {k * num_batches // self._lines for k in range(1, self._lines + 1)}

    def close(self) -> Stretch:
        """Return the stretch and begin the next; waits for the device."""
        loss = self._loss.item() / max(self._tokens, 1)
        seconds = max(time.perf_counter() - self._start, 1e-9)
        padding = 1 - self._real / self._positions
        found = Stretch(loss, self._captions / seconds, self._timed_tokens / seconds, padding)
        self.restart()
        return found

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, so that its next mean is over the whole stretch."""
        return {"loss": 0.0 if self._loss is None else self._loss.item(), "tokens": self._tokens}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state` returned."""
        self.restart()
        if state["tokens"]:
            self._loss, self._tokens = torch.tensor(state["loss"], device=device), state["tokens"]


def peak_memory(device: torch.device) -> float:
    """Return the most memory that tensors took on a GPU, GB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0

"""Sequences of a training batch, padded on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainers.bgobj_llava.model.prompt import IGNORED, TextIds
from trainers.bgobj_llava.model.sequence import Segment


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Sequences of one batch, padded on the right.

    Attributes:
        embeds: (B, L, d).
        positions: (B, L), int64.
        mask: Which rows are real, (B, L), bool.
        fused: Which rows go through the fusion layers, (B, L), bool.
        labels: Ids of the answers, -100 elsewhere, (B, L), int64.
    """

    embeds: Tensor
    positions: Tensor
    mask: Tensor
    fused: Tensor
    labels: Tensor


def pad_right(segments: Sequence[Segment], labels: Sequence[Tensor]) -> PaddedBatch:
    """Collate sequences; `labels` holds those of each one's last rows, (n2,), -100 for no answer."""
    device = segments[0].embeds.device
    lengths = torch.tensor([len(segment) for segment in segments], device=device)
    bypass = torch.tensor([segment.bypass for segment in segments], device=device)

    def pad(rows: Iterable[Tensor], value: int = 0) -> Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=value)

    full_labels = [
        torch.nn.functional.pad(own, (len(segment) - len(own), 0), value=IGNORED)
        for segment, own in zip(segments, labels, strict=True)
    ]
    columns = torch.arange(int(max(len(segment) for segment in segments)), device=device)
    return PaddedBatch(
        embeds=pad(segment.embeds for segment in segments),
        positions=pad(segment.positions for segment in segments),
        mask=columns < lengths[:, None],
        fused=columns < bypass[:, None],
        labels=pad(full_labels, IGNORED).to(device),
    )


@dataclass(frozen=True, eq=False)
class StockRows:
    """Conversations as Hugging Face's LLaVA reads them: one image token per patch.

    Attributes:
        ids: (B, L), int64.
        mask: 1 for real rows, (B, L), int64.
        labels: Ids of the answers, -100 elsewhere, (B, L), int64.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> StockRows:
        return StockRows(self.ids.to(device), self.mask.to(device), self.labels.to(device))


def write_stock_rows(
    texts: Sequence[TextIds], *, n_patches: int, image_id: int, pad_id: int, padding: str = "right"
) -> StockRows:
    """Collate conversations about one image each, padded on the `right` or `left`."""
    image = torch.full((n_patches,), image_id)
    ids = [torch.cat([text.prefix, image, text.rest]) for text in texts]
    labels = [torch.cat([torch.full((len(text.prefix) + n_patches,), IGNORED), text.labels]) for text in texts]

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=padding)

    return StockRows(pad(ids, pad_id), pad([torch.ones_like(own) for own in ids], 0), pad(labels, IGNORED))

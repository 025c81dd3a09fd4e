"""Our training step beside one of the reference's kind: same captions, same random weights, same optimizer."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.viecap_corpus import SOFT, Corpus, coco_shaped
from benchmarks.viecap_naive import NaiveBatch, NaiveData, naive_loss, pad_rows
from trainers.epoch_order import Position
from trainers.viecap.caption_store.epoch_plan import BatchShape
from trainers.viecap.caption_store.loader import CaptionBatch, CaptionLoader
from trainers.viecap.network.mapping import MappingNetwork, soft_input
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout

D_CLIP, NOISE, LR = 512, 0.016, 2e-5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS, NAIVE = "ours", "naive"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        layers, width, heads, vocabulary: Of the GPT-2.
        mapper_layers: Of the mapping network.
        captions, batch_size: Of the corpus.
        rounds, warmup: Batches that count, and before them.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    mapper_layers: int = 8
    captions: int = 20_000
    batch_size: int = 80
    rounds: int = 5
    warmup: int = 1


def build_captioner(sizes: Sizes) -> PrefixCaptioner:
    """Build a captioner with random weights, in training mode."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=sizes.vocabulary, n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads)
    mapping = MappingNetwork(D_CLIP, sizes.width, prefix_length=SOFT, n_layers=sizes.mapper_layers)
    return PrefixCaptioner(GPT2LMHeadModel(config), mapping, PromptLayout(soft_tokens=SOFT)).train()


class Side:
    """One way to train: a model, an optimizer, and the seconds of its batches.

    Attributes:
        data, total: Seconds per batch: until it is ready, and altogether.
        losses: Means per caption token.
    """

    def __init__(self, captioner: PrefixCaptioner, clock: Callable[[], float], *, fused: bool) -> None:
        self.captioner, self._clock = captioner, clock
        self._optimizer = torch.optim.AdamW(captioner.parameters(), lr=LR, eps=1e-6, weight_decay=0.0, fused=fused)
        self.data: list[float] = []
        self.total: list[float] = []
        self.losses: list[float] = []

    def learn(self, next_batch: Callable[[], Any], loss_of: Callable[[PrefixCaptioner, Any], torch.Tensor]) -> Any:
        """Take a step and return its batch."""
        start = self._clock()
        batch = next_batch()
        ready = self._clock()
        loss = loss_of(self.captioner, batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.total.append(self._clock() - start)
        self.data.append(ready - start)
        self.losses.append(loss.item())
        return batch

    def forget(self) -> None:
        """Drop the measurements."""
        self.data, self.total, self.losses = [], [], []


def our_loss(captioner: PrefixCaptioner, batch: CaptionBatch) -> torch.Tensor:
    """Return the mean loss of a batch as a run computes it."""
    generator = torch.Generator().manual_seed(batch.noise_seed)
    loss = captioner.loss(
        soft_input(batch.features, variance=NOISE, generator=generator), batch.ids, batch.n_hard, batch.n_caption
    )
    return loss.total / loss.n_tokens


def reference_loss(captioner: PrefixCaptioner, batch: NaiveBatch, generator: torch.Generator) -> torch.Tensor:
    """Return the mean loss of a batch as the reference's kind of loop computes it."""
    vectors = soft_input(batch.features, variance=NOISE, generator=generator)
    return naive_loss(captioner, vectors, batch.ids, batch.labels, batch.mask)


def compare_loss(captioner: PrefixCaptioner, batch: CaptionBatch) -> float:
    """Return the naive loss over ours on the very same ids and noise, without dropout."""
    hard, ends = batch.n_hard.tolist(), (batch.n_hard + batch.n_caption).tolist()
    rows = list(zip(batch.ids.tolist(), hard, ends, strict=True))
    naive = pad_rows(batch.features, [row[:h] for row, h, _ in rows], [row[h:end] for row, h, end in rows])
    captioner.eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(batch.noise_seed)
        ratio = float(reference_loss(captioner, naive, generator) / our_loss(captioner, batch))
    captioner.train()
    return ratio


def measure(sizes: Sizes, clock: str) -> dict[str, Any]:
    """Train both on the same captions in turn.

    Args:
        sizes: See there.
        clock: `wall`, or `cpu`: seconds of this process, on a busy machine.
    """
    corpus, now = coco_shaped(sizes.captions, width=D_CLIP), CLOCKS[clock]
    captioner = build_captioner(sizes)
    ours, naive = Side(captioner, now, fused=True), Side(copy.deepcopy(captioner), now, fused=False)
    loader, planning = _our_loader(corpus, sizes, now)
    batches, data = iter(loader), NaiveData(corpus)
    generator = torch.Generator().manual_seed(0)
    agreement = None
    for turn in range(sizes.warmup + sizes.rounds):
        if turn == sizes.warmup:
            ours.forget(), naive.forget()
        batch = ours.learn(lambda: next(batches), our_loss)
        agreement = compare_loss(captioner, batch) if agreement is None else agreement
        rows = batch.index.tolist()
        naive.learn(lambda rows=rows: data.batch(rows), lambda model, found: reference_loss(model, found, generator))
    return _summarise(sizes, ours, naive, planning / len(loader), agreement)


def _our_loader(corpus: Corpus, sizes: Sizes, now: Callable[[], float]) -> tuple[CaptionLoader, float]:
    """Return the loader and the seconds of planning an epoch."""
    shape = BatchShape(sizes.batch_size, SOFT)
    loader = CaptionLoader(corpus.text, corpus.store.features, shape, position=lambda: Position(0, 0, 0))
    next(iter(loader))  # first calls cost more
    start = now()
    loader.plan(0, 1)
    return loader, now() - start


def _summarise(sizes: Sizes, ours: Side, naive: Side, planning: float, agreement: float) -> dict[str, Any]:
    seconds = {name: statistics.median(side.total) for name, side in ((OURS, ours), (NAIVE, naive))}
    data = {OURS: statistics.median(ours.data[1:] or ours.data) + planning, NAIVE: statistics.median(naive.data)}
    return {
        "sizes": vars(sizes),
        "captions_per_s": {name: sizes.batch_size / value for name, value in seconds.items()},
        "step_s": seconds,
        "data_s": data,
        "data_share": {name: data[name] / seconds[name] for name in data},
        "speed_up": seconds[NAIVE] / seconds[OURS],
        "loss": {OURS: statistics.mean(ours.losses), NAIVE: statistics.mean(naive.losses)},
        "loss_on_equal_batch": agreement,
    }  # fmt: skip

"""What a training step computes: operators counted on the meta device, and the shares of a COCO-shaped epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.viecap_corpus import FIXED, SOFT, coco_shaped
from benchmarks.viecap_naive import naive_loss
from trainers.viecap.caption_store.epoch_plan import BatchShape, plan_epoch
from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout

D_CLIP = 512
BATCH_SIZE = 80
POSITIONS, LABELS, HARD = 32, 12, 8  # of an average caption, padded
TOLERANCE = 0.01

# GFLOP per sample, forward and backward, and their ratio.
NAIVE, OURS, RATIO = f"{FIXED} positions, full head", f"{POSITIONS} positions, {LABELS} labels", "ratio"
EXPECTED = {NAIVE: 59.27, OURS: 23.77, RATIO: 2.49}


def measure(n_captions: int) -> dict[str, Any]:
    """Return the figures and the shares.

    Args:
        n_captions: Of the COCO-shaped epoch.
    """
    counted = count_steps(GPT2Config())
    figures = [{"name": name, "counted": counted[name], "expected": expected, "deviation": counted[name] / expected - 1}
               for name, expected in EXPECTED.items()]  # fmt: skip
    return {"figures": figures, "epoch": describe_epoch(n_captions)}


def count_steps(config: GPT2Config) -> dict[str, float]:
    """Count both ways to learn one caption; GFLOP."""
    with torch.device("meta"):
        layout = PromptLayout(soft_tokens=SOFT)
        captioner = PrefixCaptioner(GPT2LMHeadModel(config), MappingNetwork(D_CLIP, config.n_embd, prefix_length=SOFT), layout)
        vectors = torch.empty(1, D_CLIP)
        ids = torch.zeros(1, FIXED - SOFT, dtype=torch.long)
        labels = torch.zeros(1, FIXED, dtype=torch.long)
    lengths = torch.tensor([HARD], device="cpu"), torch.tensor([LABELS], device="cpu")
    naive = _count(lambda: naive_loss(captioner, vectors, ids, labels, None))
    ours = _count(lambda: captioner.loss(vectors, ids[:, : POSITIONS - SOFT], *lengths).total)
    return {NAIVE: naive / 1e9, OURS: ours / 1e9, RATIO: naive / ours}


def _count(loss: Callable[[], Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops())


def describe_epoch(n_captions: int) -> dict[str, float]:
    """Return lengths and shares of one COCO-shaped epoch, at a fixed length and in our batches."""
    text = coco_shaped(n_captions, width=1).text
    plain, bucketed = (
        plan_epoch(text, BatchShape(BATCH_SIZE, SOFT, pad_multiple=multiple, bucket_batches=batches), seed=0, epoch=0)
        for multiple, batches in ((1, 1), (4, 50))
    )
    size, n_labels = bucketed.order.size, int(bucketed.text.n_caption[bucketed.order].sum())
    real = bucketed.real_tokens
    return {
        "captions": size, "real_length": real / size, "hard_length": float(bucketed.text.n_hard.mean()),
        "fixed_length": FIXED, "fixed_padding": 1 - real / size / FIXED, "fixed_labels": n_labels / size / FIXED,
        "shuffled_length": plain.padded_tokens / size, "shuffled_padding": plain.padding_share,
        "length": bucketed.padded_tokens / size, "padding": bucketed.padding_share,
        "labels": n_labels / bucketed.padded_tokens,
    }  # fmt: skip


def show(result: dict[str, Any]) -> bool:
    """Print a result; True if every figure is within tolerance."""
    print(f"{'GFLOP per caption':<28}{'counted':>10}{'expected':>10}{'deviation':>11}")
    for row in result["figures"]:
        print(f"{row['name']:<28}{row['counted']:10.2f}{row['expected']:10.2f}{100 * row['deviation']:10.2f}%")
    epoch = result["epoch"]
    print(
        f"\n{epoch['captions']} captions of COCO's shape: {epoch['real_length']:.1f} tokens, of these {SOFT} soft and "
        f"{epoch['hard_length']:.2f} hard prompt"
    )
    print(f"{'':<28}{'positions':>10}{'padding':>10}{'head used':>11}")
    rows = (("fixed length", "fixed_"), ("longest of the batch", "shuffled_"), ("sorted in chunks, by fours", ""))
    for name, prefix in rows:
        labels = "100.0%" if prefix != "fixed_" else f"{100 * epoch['fixed_labels']:.1f}%"
        print(f"{name:<28}{epoch[f'{prefix}length']:10.1f}{100 * epoch[f'{prefix}padding']:9.1f}%{labels:>11}")
    print(f"label share of the positions: {100 * epoch['labels']:.1f}%; scores are computed for these alone")
    return all(abs(row["deviation"]) <= TOLERANCE for row in result["figures"])

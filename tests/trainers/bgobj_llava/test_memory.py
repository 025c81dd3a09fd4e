"""The estimate of memory is near what autograd really keeps, and exact for what can be counted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from kept_activations import count_kept_bytes
from split_models import build_model, encode_talks, random_images, random_split
from tiny_llavas import tiny_tokenizer

from trainers.bgobj_llava.memory import estimate_memory
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.scopes import SCOPES, Parts, add_lora, prepare_trainables, trainable_parts
from trainers.memory_estimate import MOMENTS

GB = 1e9


def prepare(model: BgObjLlava, scope: str, rank: int = 4) -> Parts:
    if scope == "lora":
        add_lora(model, r=rank, alpha=8, dropout=0.05)
    parts = trainable_parts(model, scope, last_k=2)
    prepare_trainables(model, parts)
    return parts


def kept_bytes(model: BgObjLlava, dtype: torch.dtype | None) -> tuple[int, int]:
    """Return (bytes that autograd keeps for one sequence, weights and their casts not counted; rows of the sequence)."""
    (text,), images, splits = encode_talks(model, 0), random_images(model, 1).to(model.dtype), random_split(model, 1)

    def run() -> None:
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            model.train_losses(images, splits, [text])

    n_rows = len(text.prefix) + model.info.n_patches + model.info.n_separators + len(text.rest)
    return count_kept_bytes(model, run), n_rows


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_activations_are_near_what_autograd_keeps(scope, dtype) -> None:
    model = build_model(
        llava={"llm": (6, 192), "side_px": 168, "dtype": dtype or torch.float32},
        fusion_layers=2 * (scope == "fusion_projector"),
    )
    parts = prepare(model, scope)
    found, n_rows = kept_bytes(model, dtype)
    estimate = estimate_memory(model, parts, optimizer="adamw", compute_dtype=dtype, n_rows=n_rows)
    assert 0.7 < estimate.activations / found < 1.15


def test_recomputing_keeps_inputs_and_one_layer() -> None:
    sizes = {}
    for grad_ckpt in (False, True):
        model = build_model(llava={"llm": (6, 192), "side_px": 168}, grad_ckpt=grad_ckpt)
        parts = prepare(model, "full")
        found, n_rows = kept_bytes(model, None)
        estimate = estimate_memory(model, parts, optimizer="adamw", compute_dtype=None, n_rows=n_rows)
        sizes[grad_ckpt] = found, estimate.activations
    one_layer = sizes[False][1] / 6
    assert 0.5 < (sizes[True][1] - one_layer) / sizes[True][0] < 1.15
    assert sizes[True][1] < 0.35 * sizes[False][1]


@pytest.mark.parametrize("optimizer", MOMENTS)
def test_what_trains_has_gradients_and_moments_in_fp32(optimizer) -> None:
    model = build_model(llava={"dtype": torch.bfloat16})
    parts = prepare(model, "projector")
    count = sum(parameter.numel() for pairs in parts.values() for _, parameter in pairs)
    estimate = estimate_memory(model, parts, optimizer=optimizer, compute_dtype=torch.bfloat16, n_rows=50)
    assert (estimate.gradients, estimate.moments) == (4 * count, 4 * count * MOMENTS[optimizer])
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    in_fp32 = sum(p.numel() for p in model.parameters() if p.ndim > 1 and p.dtype == torch.float32)
    assert estimate.casts == 2 * in_fp32 > 0
    assert estimate.step == 4 * count


@pytest.mark.parametrize(
    ("scope", "rank", "fusion_layers", "low", "high"),
    [("lora", 16, 0, 14.5, 20), ("fusion_projector", 0, 4, 27, 32)],
)
def test_what_fits_24_gb_at_7b(seven_b, scope, rank, fusion_layers, low, high) -> None:
    model = BgObjLlava(seven_b.to(torch.bfloat16), tiny_tokenizer(), ModelOptions(fusion_layers=fusion_layers, grad_ckpt=True))
    parts = prepare(model, scope, rank)
    estimate = estimate_memory(model, parts, optimizer="adamw", compute_dtype=torch.bfloat16, n_rows=660)
    assert low < estimate.total / GB < high
    assert estimate.describe().startswith(f"about {estimate.total / 2**30:.2f} GiB: weights 1")

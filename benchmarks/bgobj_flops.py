"""Arithmetic of LLaVA-1.5-7B beside what its operators count on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration

from benchmarks.bgobj_models import build_tokenizer, read_config
from trainers.bgobj_llava.cost import WAYS, CostModel, Request, split_patches
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions

SHARES = (0.05, 0.10, 0.20, 0.30, 0.50)
N_PREFIX, N_QUESTION = 35, 25  # tokens of the prompt before the image, and of a question with its instruction
BF16 = 2
MIB = 2**20
TOLERANCE = 0.005

# What the figures are expected to be, GFLOP.
EXPECTED = {
    "tower, 576 patches": 365.3,
    "tower, 461 patches": 287.5,
    "tower, 115 patches": 68.4,
    "projector, 576 patches": 24.2,
    "636 rows": 8450,
    "640 rows": 8504,
    "498 rows": 6580,
    "142 rows after 498": 1887,
    "25 rows after 615": 332,
}


def measure() -> dict[str, Any]:
    """Return figures, the table by share of objects, and what the goals ask for."""
    config = read_config()
    cost = CostModel(config)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model = BgObjLlava(llava, build_tokenizer(), ModelOptions())
    request = _request(0.2)
    totals = {way: cost.request(way, request).total for way in WAYS}
    return {
        "figures": [_figure(cost, model, name) for name in EXPECTED],
        "table": [_row(cost, share) for share in SHARES],
        "goals": {
            "warm KV / stock": (totals["kv"] / totals["stock"], "at most", 0.23),
            "object tower / whole tower": (cost.vision(request.n_obj) / cost.vision(cost.n_patches), "at most", 0.20),
            "tokens only / stock": (totals["tokens"] / totals["stock"], "at least", 0.95),
        },
    }


def _figure(cost: CostModel, model: BgObjLlava, name: str) -> dict[str, Any]:
    """Compare arithmetic, operators, and the expected figure."""
    part, *numbers = name.replace(",", "").replace(" patches", "").split()
    if part in ("tower", "projector"):
        n_patches = int(numbers[0])
        computed = cost.vision(n_patches) if part == "tower" else cost.projector(n_patches)
        counted = _count(lambda: _project(model, n_patches))
        if part == "tower":
            counted = _count(lambda: _see(model, n_patches)) - counted
    else:
        rows, past = int(part), int(numbers[-1]) if "after" in numbers else 0
        computed = cost.llm.flops(rows, past) + cost.head()
        counted = _count(lambda: _read(model, past, rows))
        if past:
            counted -= _count(lambda: _read(model, 0, past)) - cost.head()
    return {
        "name": name, "computed": computed / 1e9, "counted": counted / 1e9, "expected": EXPECTED[name],
        "deviation": computed / 1e9 / EXPECTED[name] - 1,
    }  # fmt: skip


def _see(model: BgObjLlava, n_patches: int) -> None:
    """Tower and projector on some patches of one image."""
    side = model.info.side_px
    images = torch.empty(1, 3, side, side, device="meta", dtype=model.dtype)
    model.encode_group(images, torch.arange(n_patches), "obj")


def _project(model: BgObjLlava, n_patches: int) -> None:
    model.llava.model.multi_modal_projector(torch.empty(n_patches, model.info.d_vision, device="meta", dtype=model.dtype))


def _read(model: BgObjLlava, past: int, rows: int) -> None:
    """Prefill `rows` after `past`, and the scores after the last."""
    state = model.new_state()
    for number in (past, rows) if past else (rows,):
        hidden = model.prefill(model.token_segment(torch.zeros(number, dtype=torch.int64, device="meta"), 0), state)
    model.logits(hidden[-1:])


def _count(work: Callable[[], None]) -> float:
    """Return the operations of matrix products and attention; the patch embedding is left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    counts = counter.get_flop_counts()["Global"]
    return float(sum(number for operator, number in counts.items() if "convolution" not in str(operator)))


def _request(share: float) -> Request:
    n_obj, n_bg = split_patches(CostModel(read_config()).n_patches, share)
    return Request(n_bg, n_obj, N_PREFIX, N_QUESTION)


def _row(cost: CostModel, share: float) -> dict[str, Any]:
    request = _request(share)
    first, _ = cost.segment_lengths(request)
    return {
        "share": share, "n_obj": request.n_obj, "n_bg": request.n_bg,
        "one_pass": {way: cost.request(way, request, one_pass=True).total for way in WAYS},
        "two_segments": {way: cost.request(way, request).total for way in WAYS},
        "prefix_bytes": cost.prefix_bytes(first, BF16), "token_bytes": cost.token_bytes(request.n_bg, BF16),
    }  # fmt: skip


def show(result: dict[str, Any]) -> bool:
    """Print a result; True if all figures are within tolerance and all goals are met."""
    print(f"{'GFLOP':<24}{'computed':>11}{'counted':>11}{'expected':>11}{'deviation':>11}")
    for row in result["figures"]:
        print(
            f"{row['name']:<24}{row['computed']:11.1f}{row['counted']:11.1f}{row['expected']:11.1f}"
            f"{100 * row['deviation']:10.2f}%"
        )
    print(f"\nTFLOP to the first token, {N_PREFIX} + {N_QUESTION} text tokens; in brackets in two segments, as it runs")
    columns = (("stock", 8), ("cold", 16), ("tokens", 16), ("KV", 8), ("KV/stock", 10), ("KV MiB", 8), ("tokens MiB", 12))
    print(f"{'objects':<9}{'n_obj/n_bg':>11}" + "".join(name.rjust(width) for name, width in columns))
    for row in result["table"]:
        one, two = row["one_pass"], row["two_segments"]
        both = "".join(f"{one[way] / 1e12:8.2f} ({two[way] / 1e12:.2f})".rjust(16) for way in ("cold", "tokens"))
        sizes = f"{row['n_obj']}/{row['n_bg']}"
        print(
            f"{row['share']:<9.0%}{sizes:>11}{one['stock'] / 1e12:8.2f}{both}{one['kv'] / 1e12:8.2f}"
            f"{one['kv'] / one['stock']:10.3f}{row['prefix_bytes'] / MIB:8.0f}{row['token_bytes'] / MIB:12.1f}"
        )
    print()
    met = True
    for name, (value, sense, goal) in result["goals"].items():
        met &= value <= goal if sense == "at most" else value >= goal
        print(f"{name} {value:.3f} (goal {sense} {goal:.2f})")
    exact = all(abs(row["computed"] - row["counted"]) <= 1e-9 * row["computed"] for row in result["figures"])
    print(f"arithmetic and operators agree: {exact}")
    return met and exact and all(abs(row["deviation"]) <= TOLERANCE for row in result["figures"])

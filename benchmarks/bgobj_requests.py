"""Time to the first token, and per token after it: stock LLaVA, a split without a hit, and hits of both kinds.

All ways answer the same questions about the same pictures in turn. In a round, the first question meets an empty cache, all
others find the background of the first. Answers with and without the cache are compared bit by bit.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.bgobj_models import Camera, build_llava, build_tokenizer, normalise, write_question
from benchmarks.timing import wait_for
from trainers.bgobj_llava import trace
from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.options import CacheOptions, Hit
from trainers.bgobj_llava.cache.scene import CacheRequest
from trainers.bgobj_llava.cache.watch import ContextWatch
from trainers.bgobj_llava.cost import split_patches
from trainers.bgobj_llava.generate import Answer, Generator
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import PromptEncoder

STOCK, OFF, TOKENS, KV = "stock", "no cache", "tokens", "kv"
WAYS = (STOCK, OFF, TOKENS, KV)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PHASES = ("look_up", "vit", "projector", "prefill", "decode", "store")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        share: Of object patches.
        questions: Per round.
        rounds: That count.
        warmup: Rounds before those.
        max_new_tokens: Length of every answer.
        clock: `wall`; or `cpu`: seconds of this process alone, for one thread on a machine that others use too.
    """

    share: float = 0.2
    questions: int = 3
    rounds: int = 10
    warmup: int = 1
    max_new_tokens: int = 16
    clock: str = "wall"


class Bench:
    """Models that share one random LLaVA, stock and split.

    Args:
        config: Its shapes.
        plan: What is measured.
        dtype, device: Of the weights.
    """

    def __init__(self, config: Any, plan: Plan, *, dtype: torch.dtype, device: str) -> None:
        tokenizer = build_tokenizer()
        llava = build_llava(config, tokenizer, dtype=dtype, device=device)
        self.plan, self.device, self._clock = plan, device, CLOCKS[plan.clock]
        if plan.clock != "wall":  # phases are counted by the same clock
            trace.time = SimpleNamespace(perf_counter=self._clock)
        self.stock = BgObjLlava(llava, tokenizer, ModelOptions(split="none"))
        self.split = BgObjLlava(llava, tokenizer, ModelOptions()).to(device)
        self._watch = ContextWatch(self.split)
        self.n_obj, self.n_bg = split_patches(self.split.info.n_patches, plan.share)

    def generator(self, way: str) -> Generator:
        """Return what answers in one way; a cache starts empty."""
        model = self.stock if way == STOCK else self.split
        cache = None
        if way in (TOKENS, KV):
            cache = BackgroundCache(CacheOptions(mode=way, device_gib=64.0), device=self.device)
        encoder = PromptEncoder(model.tokenizer)
        watch = None if way == STOCK else self._watch
        return Generator(model, encoder, cache, self.plan.max_new_tokens, watch=watch)

    def camera(self, seed: int) -> Camera:
        return Camera(self.split.info, self.n_obj, seed)

    def ask(self, generator: Generator, camera: Camera, number: int) -> tuple[Answer, float]:
        """Answer one question; returns the answer and its seconds."""
        pixels = camera.picture(number)
        image = normalise(pixels, self.split.llava.get_input_embeddings().weight)
        wait_for(self.device)
        start = self._clock()
        answer = generator.answer(image, pixels, camera.split, write_question(number), "camera")
        wait_for(self.device)
        return answer, self._clock() - start


@dataclass
class Samples:
    """Seconds by (way, question): to the first token, per token after it, and by phase; peak bytes on a GPU."""

    first: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    per_token: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    phases: dict[tuple[str, int], list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, way: str, question: int, answer: Answer, seconds: float) -> None:
        """Keep one answer. What is stored is stored after the first token, and outside of what a token takes."""
        own = answer.trace["seconds"]
        self.first[way, question].append(seconds - own["decode"] - own["store"])
        self.per_token[way, question].append(own["decode"] / max(len(answer.ids) - 1, 1))
        self.phases[way, question].append(own)


def measure(bench: Bench) -> dict[str, Any]:
    """Run all rounds.

    Raises:
        SystemExit: If the cache changes an answer, or misses.
    """
    samples, plan = Samples(), bench.plan
    for turn in range(plan.warmup + plan.rounds):
        kept = samples if turn >= plan.warmup else Samples()
        _run_round(bench, turn, kept)
    return summarise(bench, samples)


def _run_round(bench: Bench, turn: int, samples: Samples) -> None:
    generators, camera = {way: bench.generator(way) for way in WAYS}, bench.camera(turn)
    order = WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]
    for question in range(1, bench.plan.questions + 1):
        answers = {}
        for way in order:
            reset_peak(bench.device)
            answers[way], seconds = bench.ask(generators[way], camera, question)
            samples.add(way, question, answers[way], seconds)
            samples.peak_bytes[way] = max(samples.peak_bytes.get(way, 0), read_peak(bench.device))
        check_equal(answers, question)


def check_equal(answers: Mapping[str, Answer], question: int) -> None:
    """Require equal bits with and without the cache, and a hit for every question but the first."""
    off = answers[OFF]
    for way in (TOKENS, KV):
        found = answers[way]
        if found.trace["hit"] != ("" if question == 1 else way):
            raise SystemExit(f"question {question}, {way}: hit {found.trace['hit']!r}, miss {found.trace['miss']!r}")
        if found.ids != off.ids or not torch.equal(found.logits_first, off.logits_first):
            raise SystemExit(f"question {question}, {way}: the answer differs from that without cache")


def summarise(bench: Bench, samples: Samples) -> dict[str, Any]:
    """Return medians, and the ratios of medians that goals are about."""
    plan = bench.plan
    warm = range(2, plan.questions + 1)
    rows = [_row(samples, way, question) for question in range(1, plan.questions + 1) for way in WAYS]
    first = {way: _median(samples.first, way, warm) for way in WAYS}
    decode = {way: _median(samples.per_token, way, warm) for way in WAYS}
    cold = _median(samples.first, KV, [1]) / _median(samples.first, STOCK, [1])
    prefill = {way: statistics.median(row["prefill"] for q in warm for row in samples.phases[way, q]) for way in (OFF, KV)}
    return {
        "objects": bench.n_obj, "background": bench.n_bg, "rounds": plan.rounds, "rows": rows,
        "ttft_warm_kv_over_stock": first[KV] / first[STOCK],
        "ttft_warm_tokens_over_stock": first[TOKENS] / first[STOCK],
        "ttft_split_over_stock": first[OFF] / first[STOCK],
        "ttft_cold_over_stock": cold,
        "prefill_warm_over_cold": prefill[KV] / prefill[OFF],
        "decode_warm_kv_over_stock": decode[KV] / decode[STOCK],
        "decode_warm_kv_over_no_cache": decode[KV] / decode[OFF],
        "peak_bytes": samples.peak_bytes,
    }  # fmt: skip


def _row(samples: Samples, way: str, question: int) -> dict[str, Any]:
    phases = samples.phases[way, question]
    return {
        "question": question, "way": way,
        "ttft_s": statistics.median(samples.first[way, question]),
        "per_token_s": statistics.median(samples.per_token[way, question]),
        **{f"{name}_s": statistics.median(row[name] for row in phases) for name in PHASES},
    }  # fmt: skip


def _median(table: Mapping[tuple[str, int], list[float]], way: str, questions: Any) -> float:
    return statistics.median(value for question in questions for value in table[way, question])


def measure_look_up(bench: Bench, n_entries: int, rounds: int) -> dict[str, float]:
    """Time look-ups among many backgrounds, and the hash of one image, in turn.

    Returns:
        Median seconds: `hit`, `miss`, `sha256`.
    """
    cache, context = BackgroundCache(CacheOptions(mode="tokens", device_gib=64.0)), "benchmark"
    cache.new_context(context)
    split, token = bench.camera(0).split, torch.zeros(bench.n_bg, 1)

    def request(seed: int, number: int) -> CacheRequest:
        return CacheRequest(bench.camera(seed).picture(number), split.raw, split.objects)

    for seed in range(n_entries):
        cache.store(request(seed, 0), context, token, {})
    seconds: dict[str, list[float]] = defaultdict(list)
    clock = CLOCKS[bench.plan.clock]
    for turn in range(rounds + 1):
        known, unknown = request(turn * 7919 % n_entries, 1), request(n_entries + turn, 1)
        ways: dict[str, Callable[[], Any]] = {
            "hit": lambda asked=known: cache.look_up(asked, context),
            "miss": lambda asked=unknown: cache.look_up(asked, context),
            "sha256": lambda asked=known: hashlib.sha256(np.ascontiguousarray(asked.pixels)).digest(),
        }
        for name, way in ways.items():
            start = clock()
            result = way()
            if turn:
                seconds[name].append(clock() - start)
            if name != "sha256" and isinstance(result, Hit) is not (name == "hit"):
                raise SystemExit(f"look-up among {n_entries} entries: expected a {name}, got {result}")
            if isinstance(result, Hit):
                result.release()
    return {name: statistics.median(values) for name, values in seconds.items()}


def reset_peak(device: str) -> None:
    """Start measuring the peak of a GPU's memory anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def read_peak(device: str) -> int:
    """Return the peak of a GPU's memory in bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0

"""One round of questions: a generator, its cache while it lasts, and a plain row per answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from trainers.bgobj_llava import settings
from trainers.bgobj_llava.building import System
from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.options import CacheOptions
from trainers.bgobj_llava.cache.watch import ContextWatch
from trainers.bgobj_llava.cost import CostModel
from trainers.bgobj_llava.generate import Answer, Generator
from trainers.bgobj_llava.geometry import PatchSplit
from trainers.bgobj_llava.model.prompt import PromptError

logger = logging.getLogger(__name__)

Show = Callable[[int, dict[str, Any], "NDArray | None"], None]


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked.

    Attributes:
        images: Normalised RGB, (B, 3, S, S), on the device.
        pixels: The same before normalisation, (B, S, S, 3), uint8.
        splits: Their object patches.
        questions: One each.
        impaths: Their files.
        index: Their numbers in the split.
    """

    images: Tensor
    pixels: Tensor
    splits: Sequence[PatchSplit]
    questions: Sequence[str]
    impaths: Sequence[str]
    index: Sequence[int]


class AnswerSession:
    """Answers batches of questions while the model stays as it is; backgrounds are cached from one to the next.

    Args:
        system: In evaluation mode.
        node: `TRAINER.BGOBJLLAVA`.
        autocast: Context in which the model runs.
        stream_id: Of the cache: all questions of the session are likely to share backgrounds.
    """

    def __init__(
        self, system: System, node: CfgNode, autocast: Callable[[], AbstractContextManager], *, stream_id: str = "session"
    ) -> None:
        options = settings.cache_options(node)
        self._cache = None if options is None else _open_cache(system, options)
        self._autocast, self._stream_id, self._encoder = autocast, stream_id, system.encoder
        self._undetected = self._count = 0
        with autocast():
            self._generator = build_generator(system, node, self._cache)
            self._generator.refresh()

    def answer(self, asked: Questions, show: Show | None = None) -> list[dict[str, Any]]:
        """Return one row per question: `answer`, `truncated`, `detected` and the trace.

        Args:
            asked: The questions.
            show: Called with the number in the split, the row, and the patches that came from the cache (None without a hit).
        """
        with self._autocast():
            answers = self._answer_each(asked) if self._cache is not None else self._answer_all(asked)
        self._count += len(answers)
        self._undetected += sum(not split.detected for split in asked.splits)
        rows = [
            {"answer": each.text, "truncated": each.truncated, "detected": split.detected, **each.trace}
            for each, split in zip(answers, asked.splits, strict=True)
        ]
        for number, row, each in zip(asked.index, rows, answers, strict=True) if show else ():
            show(number, row, each.cached)
        return rows

    def answer_or_explain(self, asked: Questions) -> list[dict[str, Any]]:
        """Return one row per question, which for one that cannot be asked is `error` alone."""
        reasons = [self._why_not(question) for question in asked.questions]
        possible = [number for number, reason in enumerate(reasons) if not reason]
        rows: list[dict[str, Any]] = [{"error": reason} for reason in reasons]
        if possible:
            columns = (asked.splits, asked.questions, asked.impaths, asked.index)
            chosen = Questions(
                asked.images[possible], asked.pixels[possible], *([column[number] for number in possible] for column in columns)
            )
            for number, row in zip(possible, self.answer(chosen), strict=True):
                rows[number] = row
        return rows

    def close(self) -> None:
        """Free the cache, and say what it did."""
        if self._undetected:
            logger.info("No object was found for %s of %s questions", f"{self._undetected:,}", f"{self._count:,}")
        if self._cache is None:
            return
        counters = self._cache.counters
        logger.info(
            "Cache: %s requests, %.1f%% hits, %s stored, misses: %s", f"{counters.requests:,}", 100 * counters.hit_rate,
            f"{counters.stored:,}", ", ".join(f"{reason} {count:,}" for reason, count in counters.misses.items()) or "none",
        )  # fmt: skip
        self._cache.close()

    @property
    def counters(self) -> dict[str, Any]:
        """What the cache did, in JSON's types; empty without one."""
        return {} if self._cache is None else self._cache.counters.as_dict()

    def _answer_each(self, asked: Questions) -> list[Answer]:
        columns = zip(asked.images, asked.pixels.numpy(), asked.splits, asked.questions, strict=True)
        return [self._generator.answer(*each, stream_id=self._stream_id) for each in columns]

    def _answer_all(self, asked: Questions) -> list[Answer]:
        return self._generator.answer_batch(asked.images, asked.splits, asked.questions)

    def _why_not(self, question: str) -> str:
        try:
            self._encoder.encode([(question, None)])
        except PromptError as error:
            return str(error)
        return ""


def _open_cache(system: System, options: CacheOptions) -> BackgroundCache:
    """Return a cache that knows what its hits save."""
    cost = CostModel(system.model.llava.config, system.model.options)
    n_prefix = len(system.encoder.encode([("?", None)]).prefix)
    return BackgroundCache(options, device=system.model.device, saved_flops=cost.saved_by(n_prefix))


def build_generator(system: System, node: CfgNode, cache: BackgroundCache | None) -> Generator:
    """Return what answers for a system.

    Args:
        system: With the fingerprint of its base.
        node: `TRAINER.BGOBJLLAVA`.
        cache: Of backgrounds; None: none is kept.
    """
    preprocessing = system.loaded.preprocessing | {"aspect": node.IMAGE.ASPECT}
    watch = ContextWatch(
        system.model, preprocessing, base=system.loaded.base.fingerprint, trained=list(system.parameters)
    )
    return Generator(
        system.model, system.encoder, cache, node.GEN.MAX_NEW_TOKENS, watch=watch, overlap_ring=node.MASK.OVERLAP_RING
    )

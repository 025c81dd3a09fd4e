"""Answers to questions about images, with backgrounds from the cache where it has them.

A sequence is always read in two parts, text and background first, then objects and question: with and without a hit alike, so
that both give the same bits. A hit replaces the background's tokens, or the whole first part, by what is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.entry import Payload
from trainers.bgobj_llava.cache.options import NODE as CACHE_NODE
from trainers.bgobj_llava.cache.options import Hit
from trainers.bgobj_llava.cache.scene import CacheRequest
from trainers.bgobj_llava.cache.watch import ContextWatch
from trainers.bgobj_llava.decoding import Decoded, GreedyDecoder
from trainers.bgobj_llava.geometry import PatchSplit, dilate
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import NODE
from trainers.bgobj_llava.model.prefill import PrefillState
from trainers.bgobj_llava.model.prompt import PromptEncoder, TextIds
from trainers.bgobj_llava.model.sequence import BACKGROUND, OBJECT, Encoded, Segments
from trainers.bgobj_llava.trace import PhaseClock, write_trace

logger = logging.getLogger(__name__)


class AuditError(RuntimeError):
    """A cached background differs from its recomputation."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says.

    Attributes:
        ids: Generated tokens without the end token.
        text: Their text.
        truncated: Whether the limit came before the end token.
        logits_first: Scores of the first token, nothing suppressed, (V,).
        trace: See `trace.write_trace`.
        cached: Patches whose stored background was used, (P,), bool; None without a hit.
    """

    ids: list[int]
    text: str
    truncated: bool
    logits_first: Tensor
    trace: dict[str, Any]
    cached: NDArray[np.bool_] | None = None


@dataclass(eq=False)
class _Work:
    """One answer in the making."""

    images: Tensor  # (1, 3, S, S)
    pixels: NDArray[np.uint8]
    split: PatchSplit
    text: TextIds
    clock: PhaseClock
    stream_id: str = ""
    context: str = ""
    hit: Hit | None = None
    miss: str = ""
    pairs: Mapping[str, Any] = field(default_factory=dict)  # after the first part


class Generator:
    """Answers questions; greedy.

    Args:
        model: In evaluation mode. While it trains the cache is not used.
        encoder: Of the prompt.
        cache: None: every background is computed.
        max_new_tokens: Longest answer, its end token included.
        watch: Context of the model's backgrounds; None: all weights are hashed from memory when they change.
        overlap_ring: `MASK.OVERLAP_RING`: rings of background patches that are encoded with the objects, too.
    Raises:
        ValueError: If the model's backgrounds cannot be cached as asked.
    """

    def __init__(
        self,
        model: BgObjLlava,
        encoder: PromptEncoder,
        cache: BackgroundCache | None = None,
        max_new_tokens: int = 16,
        *,
        watch: ContextWatch | None = None,
        overlap_ring: int = 0,
    ) -> None:
        options = model.options
        self._model, self._encoder, self._overlap_ring = model, encoder, overlap_ring
        self.cache = cache if options.split != "none" else None
        self._check_cache()
        self._watch = watch or ContextWatch(model)
        self._decoder = GreedyDecoder(model, max_new_tokens)
        self._max_new_tokens = max_new_tokens
        if self.cache is not None and options.vit_eval == "mask":
            logger.info("Cache: backgrounds are encoded apart, as %s.VIT_EVAL gather does", NODE)

    def _check_cache(self) -> None:
        options = self._model.options
        if self.cache is None:
            return
        if not options.isolates:
            raise ValueError(
                f"{CACHE_NODE}.MODE is {self.cache.options.mode!r}, but with {NODE}.SPLIT {options.split} background tokens "
                "have seen the objects; expected CACHE.MODE none, or SPLIT bgobj"
            )
        if self.cache.options.mode == "kv" and not options.reorders:
            raise ValueError(
                f"{CACHE_NODE}.MODE is 'kv', but with {NODE}.SPLIT {options.split} the background is no prefix; "
                "expected tokens or none, or SPLIT bgobj"
            )

    def refresh(self) -> str:
        """Compare the model with what the cache knows; what belongs to other weights is freed. Returns the context."""
        context = self._watch.context(self._encoder.encode([("?", None)]).prefix.tolist())
        if self.cache is not None:
            self.cache.new_context(context)
        return context

    @torch.no_grad()
    def answer(
        self,
        image: Tensor,
        pixels: NDArray[np.uint8],
        split: PatchSplit,
        question: str,
        stream_id: str = "",
        *,
        seconds: Mapping[str, float] | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            image: Normalised RGB, (3, S, S), on the model's device.
            pixels: The same before normalisation, (S, S, 3), uint8; what the cache compares.
            split: Its object patches.
            question: Text.
            stream_id: Requests that are likely to share a background.
            seconds: Phase -> what the caller has spent on it already (`preprocess`, `detect`).
        """
        clock = PhaseClock(self._model.device, seconds)
        text = self._encoder.encode([(question, None)])
        if self._model.options.split == "none":
            return self._answer_stock(image[None], [text], clock)[0]
        work = _Work(image[None], pixels, split, text, clock, stream_id)
        try:
            return self._answer(work)
        finally:
            if work.hit is not None:
                work.hit.release()

    @torch.no_grad()
    def answer_batch(self, images: Tensor, splits: Sequence[PatchSplit], questions: Sequence[str]) -> list[Answer]:
        """Answer one question for each of several images at once, without the cache.

        Args:
            images: (B, 3, S, S).
            splits: Of each image.
            questions: One for each image.
        """
        clock = PhaseClock(self._model.device)
        texts = [self._encoder.encode([(question, None)]) for question in questions]
        if self._model.options.split == "none":
            return self._answer_stock(images, texts, clock)
        with self._timed(clock):
            with clock.phase("vit"):
                encoded = self._model.encode(images, batch_splits(splits))
            segments = [self._model.build_segments(each, text) for each, text in zip(encoded, texts, strict=True)]
            with clock.phase("prefill"):
                read = self._decoder.read_batch([each.whole for each in segments])
            with clock.phase("decode"):
                decoded = self._decoder.follow_batch(read)
        traces = [self._trace(clock, each) for each in segments]
        return [self._finish(*each) for each in zip(decoded, read.logits, traces, strict=True)]

    # -- one answer -----------------------------------------------------------------------------------------------------

    def _answer(self, work: _Work) -> Answer:
        model, clock = self._model, work.clock
        with self._timed(clock):
            with clock.phase("look_up"):
                self._look_up(work)
            with clock.phase("vit"):
                encoded = self._encode(work)
            segments = model.build_segments(encoded, work.text)
            with clock.phase("prefill"):
                state = self._read_background(work, segments)
                hidden = model.prefill(segments.suffix, state)
                logits = model.logits(hidden[-1:])
                first_id = int(self._decoder.choose(logits))
            with clock.phase("decode"):
                decoded = self._decoder.follow(first_id, state, segments.next_position)
            with clock.phase("store"):
                self._settle(work, encoded)
        answer = self._finish(decoded, logits[0], self._trace(clock, segments, work))
        return answer if work.hit is None else replace(answer, cached=work.hit.entry.facts.patches)

    def _look_up(self, work: _Work) -> None:
        if self.cache is None or self._model.training or work.split.stock_order or "bg" not in self._model.visible:
            return
        work.context = self._watch.context(work.text.prefix.tolist())
        self.cache.new_context(work.context)
        split = work.split
        result = self.cache.look_up(CacheRequest(work.pixels, split.raw, split.objects, work.stream_id), work.context)
        if isinstance(result, Hit):
            work.hit = result
        else:
            work.miss = result.reason

    def _encode(self, work: _Work) -> Encoded:
        """Tokens of both groups: of the request's split, or of the split that a hit's background makes."""
        model = self._model
        if not work.context:
            return model.encode(work.images, batch_splits([work.split]))[0]
        objects, ring = self._groups(work)
        groups = (~objects, objects | ring)
        bg_index, obj_index = (torch.from_numpy(np.flatnonzero(each)).to(work.images.device) for each in groups)
        bg = work.hit.payload.tokens if work.hit else model.encode_group(work.images, bg_index, "bg")
        return Encoded(bg, model.encode_group(work.images, obj_index, "obj"), bg_index, obj_index)

    def _groups(self, work: _Work) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Object patches and ring: after a hit, everything that is not in its background is encoded anew."""
        if work.hit is None:
            return work.split.objects, work.split.ring
        objects = ~work.hit.entry.facts.patches
        grid = self._model.info.grid
        ring = dilate(objects.reshape(grid, grid), self._overlap_ring).reshape(-1) & ~objects
        return objects, ring

    def _read_background(self, work: _Work, segments: Segments) -> PrefillState:
        """Return the state after the first part: stored, or computed."""
        if work.hit is not None and work.hit.level == "kv":
            return PrefillState.from_pairs(work.hit.payload.pairs)
        state = self._model.new_state()
        self._model.prefill(segments.s0, state)
        work.pairs = state.pairs()
        return state

    def _settle(self, work: _Work, encoded: Encoded) -> None:
        """Store what was computed, and recompute a hit that is to be audited."""
        if not work.context:
            return
        if work.hit is not None and work.hit.audit:
            self._audit(work, encoded)
        wants_pairs = self.cache.options.mode == "kv"
        if work.hit is None or (wants_pairs and work.hit.exact and work.hit.level == "tokens"):
            raw, (objects, _) = work.split.raw, self._groups(work)
            request = CacheRequest(work.pixels, raw, objects, work.stream_id)
            if not objects.all():
                self.cache.store(request, work.context, encoded.bg, work.pairs)

    def _audit(self, work: _Work, encoded: Encoded) -> None:
        """Compute a hit's background anew.

        Raises:
            AuditError: If a bit differs.
        """
        bg = self._model.encode_group(work.images, encoded.bg_index, "bg")
        fresh = Encoded(bg, encoded.obj, encoded.bg_index, encoded.obj_index)
        stored, computed = {"tokens": work.hit.payload.tokens}, {"tokens": bg}
        if work.hit.level == "kv":
            state = self._model.new_state()
            self._model.prefill(self._model.build_segments(fresh, work.text).s0, state)
            stored, computed = work.hit.payload.flat(), Payload(bg, state.pairs()).flat()
        wrong = sorted(name for name in stored if not torch.equal(stored[name], computed[name]))
        if wrong:
            raise AuditError(
                f"cache entry {work.hit.entry.key} ({work.hit.tier}) differs from its recomputation in {len(wrong)} of "
                f"{len(stored)} tensors: {', '.join(wrong[:3])}; remove it (scripts/bgobj_cache.py purge) and report this"
            )

    # -- stock LLaVA ----------------------------------------------------------------------------------------------------

    def _answer_stock(self, images: Tensor, texts: Sequence[TextIds], clock: PhaseClock) -> list[Answer]:
        """Answer by Hugging Face's own generate: the LLaVA as it is."""
        info = self._model.info
        inputs = self._model.stock_inputs(images, texts, padding="left")
        with self._timed(clock, with_tower=True), clock.phase("prefill"):
            output = self._model.llava.generate(
                **inputs, max_new_tokens=self._max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
                eos_token_id=info.eos_id, pad_token_id=info.eos_id if info.pad_id is None else info.pad_id,
                return_dict_in_generate=True, output_logits=True,
                logits_processor=LogitsProcessorList([_FirstScores(clock)]),
            )  # fmt: skip
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        decoded = [self._decoder.finish(row) for row in new.tolist()]
        trace = write_trace(clock, n_obj=info.n_patches)
        return [self._finish(each, logits, trace) for each, logits in zip(decoded, output.logits[0], strict=True)]

    # -- results --------------------------------------------------------------------------------------------------------

    def _timed(self, clock: PhaseClock, *, with_tower: bool = False) -> Any:
        model, llava = self._model, self._model.llava.model
        projectors = (llava.multi_modal_projector, model.projector_bg, model.projector_obj)
        tower = (llava.vision_tower,) if with_tower else ()
        return clock.modules({"vit": tower, "projector": projectors, "fusion": (model.fusion,)})

    def _trace(self, clock: PhaseClock, segments: Segments, work: _Work | None = None) -> dict[str, Any]:
        n_bg, n_obj = count_patches(segments)
        if work is None or work.hit is None:
            return write_trace(clock, n_bg=n_bg, n_obj=n_obj, miss=work.miss if work else "")
        hit = work.hit
        return write_trace(
            clock, n_bg=n_bg, n_obj=n_obj, hit=hit.level, tier=hit.tier, exact=hit.exact, drift=hit.drift,
            entry=hit.entry.key, flops_saved=hit.flops_saved,
        )  # fmt: skip

    def _finish(self, decoded: Decoded, logits: Tensor, trace: dict[str, Any]) -> Answer:
        text = self._model.tokenizer.decode(decoded.ids, skip_special_tokens=True).strip()
        return Answer(decoded.ids, text, decoded.truncated, logits.float(), trace)


class _FirstScores(LogitsProcessor):
    """Tells the clock when Hugging Face's generate has the scores of the first token; leaves them as they are."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._clock.switch("decode")
        return scores


def batch_splits(splits: Sequence[PatchSplit]) -> SplitBatch:
    """Return the splits of several images as tensors."""
    objects, ring = (torch.from_numpy(np.stack([getattr(split, name) for split in splits])) for name in ("objects", "ring"))
    return SplitBatch(objects, ring, torch.tensor([split.stock_order for split in splits]))


def count_patches(segments: Segments) -> tuple[int, int]:
    """Return how many background and object tokens are in a sequence."""
    types = torch.cat([segment.types for segment in segments])
    return int((types == BACKGROUND).sum()), int((types == OBJECT).sum())

"""From prompts to captions: beam search by average log-probability, greedy, or sampling."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from trainers.viecap.network.beam import beam_search
from trainers.viecap.network.model import PrefixCaptioner

__all__ = ["DecodeOptions", "Decoded", "decode", "decode_prompts"]

logger = logging.getLogger(__name__)

MODES = ("beam", "greedy", "sample")
MORE_TRIES = 4  # for captions that differ: wider beams, further draws

TextOf = Callable[[list[int]], Hashable]


@dataclass(frozen=True)
class DecodeOptions:
    """How captions are generated.

    Attributes:
        mode: beam, greedy or sample (`DECODE`).
        beam_width: Hypotheses of beam.
        max_new_tokens: Limit, the stopping token included.
        num_return: Captions per prompt that differ.
        top_p: Probability mass that sample draws from, (0, 1].
        temperature: Divides the scores before sample draws, above 0.
        stop_ids: Tokens that end a caption; they stay in it.
        seed: Of sample.
    """

    mode: str = "beam"
    beam_width: int = 5
    max_new_tokens: int = 64
    num_return: int = 1
    top_p: float = 0.9
    temperature: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.mode not in MODES:
            problems.append(f"DECODE is {self.mode!r}; expected one of {', '.join(MODES)}")
        problems += [
            f"{name} is {value}; expected 1 or more"
            for name, value in (
                ("BEAM_WIDTH", self.beam_width), ("MAX_NEW_TOKENS", self.max_new_tokens), ("NUM_RETURN", self.num_return)
            ) if value < 1
        ]  # fmt: skip
        most = {"beam": self.beam_width, "greedy": 1}.get(self.mode)
        if most is not None and self.num_return > most:
            reason = "BEAM_WIDTH" if self.mode == "beam" else "DECODE greedy has one caption"
            problems.append(f"NUM_RETURN is {self.num_return}; expected at most {most} ({reason})")
        if not self.stop_ids:
            problems.append("no token ends a caption; expected stop_ids from find_stop_ids (STOP)")
        if problems:
            raise ValueError("\n".join(f"TRAINER.VIECAP: {problem}" for problem in problems))


@dataclass(frozen=True)
class Decoded:
    """A caption.

    Attributes:
        ids: Tokens, the stopping one included.
        score: Their mean log-probability, nats.
        truncated: No stopping token came within the limit.
    """

    ids: list[int]
    score: float
    truncated: bool


def decode_prompts(
    captioner: PrefixCaptioner,
    vectors: Tensor | None,
    prompt_ids: Sequence[Sequence[int]],
    options: DecodeOptions,
    *,
    rows: Sequence[int] | None = None,
    text_of: TextOf = tuple,
) -> list[list[Decoded]]:
    """Caption images in batches of equal prompt length, so that nothing is padded and a batch equals single images.

    Args:
        captioner: In evaluation mode.
        vectors: From `soft_input` without noise, (B, E), on the device; None without a mapping network.
        prompt_ids: Hard prompts, B lists of any lengths.
        options: See there.
        rows: See `decode`.
        text_of: See `decode`.
    Returns:
        Per image what `decode` returns, in the order of the images.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for place, ids in enumerate(prompt_ids):
        groups[len(ids)].append(place)
    rows = range(len(prompt_ids)) if rows is None else rows
    found: dict[int, list[Decoded]] = {}
    for places in groups.values():
        index = None if vectors is None else torch.tensor(places, device=vectors.device)
        with torch.no_grad():
            embeds = captioner.prompt_embeds(None if index is None else vectors[index], [prompt_ids[place] for place in places])
        decoded = decode(captioner, embeds, options, rows=[rows[place] for place in places], text_of=text_of)
        found.update(zip(places, decoded, strict=True))
    return [found[place] for place in range(len(prompt_ids))]


def decode(
    captioner: PrefixCaptioner,
    embeds: Tensor,
    options: DecodeOptions,
    *,
    rows: Sequence[int] | None = None,
    text_of: TextOf = tuple,
) -> list[list[Decoded]]:
    """Continue prompts of equal length.

    Args:
        captioner: In evaluation mode.
        embeds: From `prompt_embeds`, (B, L, d).
        options: See there.
        rows: A number per prompt, of which, with the seed, sample's draws depend; default: 0 to B - 1.
        text_of: Ids -> what has to differ between the captions of a prompt, their text for instance; the ids unless given.
    Returns:
        Per prompt `num_return` captions, best first; fewer, with a warning, if no more can be found that differ.
    Raises:
        ValueError: If prompt and caption may exceed the language model's positions, or it is in training mode.
    """
    if captioner.training:
        raise ValueError("captions are generated in evaluation mode; call eval() first")
    captioner.check_length(embeds.shape[1] + options.max_new_tokens - 1)
    rows = list(range(len(embeds)) if rows is None else rows)
    found: list[list[Decoded]] = [[] for _ in rows]
    lacking = list(range(len(rows)))
    for attempt in range(MORE_TRIES):
        chosen = embeds if len(lacking) == len(rows) else embeds[lacking]
        again = _decode_once(captioner, chosen, options, [rows[place] for place in lacking], attempt)
        for place, candidates in zip(lacking, again, strict=True):
            found[place] = _take_distinct([*found[place], *candidates], options.num_return, text_of)
        lacking = [place for place in lacking if len(found[place]) < options.num_return]
        if not lacking:
            break
    else:
        logger.warning("%d prompt(s) have fewer than %d captions that differ", len(lacking), options.num_return)
    if options.mode == "sample":
        return [sorted(row, key=lambda caption: -caption.score) for row in found]
    return found


def _decode_once(
    captioner: PrefixCaptioner, embeds: Tensor, options: DecodeOptions, rows: Sequence[int], attempt: int
) -> list[list[Decoded]]:
    if options.mode == "beam":
        width = min(options.beam_width * 2**attempt, captioner.vocabulary_size) if attempt else options.beam_width
        return _search(captioner, embeds, replace(options, beam_width=width))
    if options.mode == "greedy":
        return [[caption] for caption in _generate(captioner, embeds, options, [])]
    n = options.num_return
    seeds = [(options.seed, row, attempt * n + draw) for row in rows for draw in range(n)]
    processors = [
        TemperatureLogitsWarper(float(options.temperature)),
        TopPLogitsWarper(float(options.top_p)),
        GumbelNoise(seeds, embeds.device),
    ]
    captions = _generate(captioner, embeds.repeat_interleave(n, dim=0), options, processors)
    return [captions[first : first + n] for first in range(0, len(captions), n)]


def _take_distinct(captions: Sequence[Decoded], n: int, text_of: TextOf) -> list[Decoded]:
    distinct: dict[Hashable, Decoded] = {}
    for caption in captions:
        distinct.setdefault(text_of(caption.ids), caption)
    return list(distinct.values())[:n]


def _search(captioner: PrefixCaptioner, embeds: Tensor, options: DecodeOptions) -> list[list[Decoded]]:
    found = beam_search(
        captioner, embeds, width=options.beam_width, max_new_tokens=options.max_new_tokens, stop_ids=options.stop_ids
    )
    parts = (found.ids, found.lengths, found.averages, found.finished)
    return [
        [
            Decoded(ids[:length], score, not finished)
            for ids, length, score, finished in zip(*columns, strict=True)
        ]
        for columns in zip(*(part.tolist() for part in parts), strict=True)
    ]  # fmt: skip


@torch.no_grad()
def _generate(
    captioner: PrefixCaptioner, embeds: Tensor, options: DecodeOptions, processors: Sequence[LogitsProcessor]
) -> list[Decoded]:
    """Take the highest processed score in every step; returns one caption per prompt."""
    stops = sorted(options.stop_ids)
    generated = captioner.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        generation_config=GenerationConfig(
            max_new_tokens=options.max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=stops[0]
        ),
        logits_processor=LogitsProcessorList(processors),
    )
    rows = [_cut(row, options.stop_ids) for row in generated.tolist()]
    scores = mean_log_probs(captioner, embeds, rows)
    return [
        Decoded(row, score, row[-1] not in options.stop_ids) for row, score in zip(rows, scores.tolist(), strict=True)
    ]  # fmt: skip


def _cut(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """Drop what follows the first stopping token."""
    end = next((place + 1 for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


def mean_log_probs(captioner: PrefixCaptioner, embeds: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean log-probability of given continuations, (B,), by reading each once.

    Args:
        captioner: In evaluation mode.
        embeds: Prompts, (B, L, d).
        rows: Token ids of the continuations, one or more each.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(embeds.device)
    real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(embeds.device)
    hidden = captioner.hidden(torch.cat([embeds, captioner.embed(ids[:, :-1])], dim=1))[:, embeds.shape[1] - 1 :]
    log_probs = captioner.scores(hidden[real]).log_softmax(dim=-1).gather(1, ids[real][:, None])[:, 0]
    sums = torch.zeros(real.shape, dtype=log_probs.dtype, device=embeds.device).masked_scatter(real, log_probs).sum(dim=1)
    return sums / lengths.to(embeds.device)


class GumbelNoise(LogitsProcessor):
    """Makes the highest score a draw from the scores' distribution.

    The largest of log p + Gumbel noise is distributed by p. Each row has a generator of its own, so that what is drawn for it
    does not depend on the batch.

    Args:
        seeds: Numbers that seed a row's generator, for each row.
        device: Of the scores.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(_seed_of(words)) for words in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with noise."""
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()


def _seed_of(words: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)

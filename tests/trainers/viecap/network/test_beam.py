"""The search against one that is written plainly, and beside Hugging Face's."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import pytest
import torch
from random_captioners import D_CLIP, random_captioner
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from trainers.viecap.network.beam import PAD, Hypotheses, beam_search, extend
from trainers.viecap.network.model import PrefixCaptioner

STOPS = frozenset(range(400, 477))
LIMIT = 8
Row = tuple[list[int], float, bool]  # ids, sum of their log-probabilities, finished

# A prompt of `prompts(captioner, 200)`, and what both searches return for it.
HUGGING_FACE_DIFFERS = 11
OURS = [18, 263, 362, 249, 18, 263, 378, 101]
THEIRS = [18, 263, 362, 249, 18, 32, 272, 301]


@pytest.fixture(scope="module")
def captioner() -> PrefixCaptioner:
    return random_captioner(sharpness=0.6).double()


def prompts(captioner: PrefixCaptioner, n: int, length: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, captioner.vocabulary_size, (n, length), generator=generator).tolist()
    with torch.no_grad():
        return captioner.prompt_embeds(torch.randn(n, D_CLIP, generator=generator), ids)


@torch.no_grad()
def naive_search(captioner: PrefixCaptioner, embeds: Tensor, width: int) -> list[list[Row]]:
    """Search prompts (B, L, d) without a cache, in plain lists of (ids, sum, finished), ranked by average in each step."""
    found: list[list[Row]] = [[([], 0.0, False)] for _ in embeds]
    for _ in range(LIMIT):
        unfinished = [(place, ids) for place, rows in enumerate(found) for ids, _, finished in rows if not finished]
        words = captioner.embed(torch.tensor([ids for _, ids in unfinished], dtype=torch.long))
        sequences = torch.cat([embeds[[place for place, _ in unfinished]], words], dim=1)
        scores = captioner.language_model(inputs_embeds=sequences).logits[:, -1]
        values, tokens = scores.log_softmax(-1).sort(descending=True)
        best = (dict(zip(*pair, strict=True)) for pair in zip(tokens[:, :10].tolist(), values[:, :10].tolist(), strict=True))
        found = [_best([row for old in rows for row in _grow(old, best)], width) for rows in found]
    return found


def _grow(row: Row, log_probs: Iterator[dict[int, float]]) -> list[Row]:
    """Continue a hypothesis by the ten best tokens; a finished one stays."""
    ids, total, finished = row
    return [row] if finished else [([*ids, k], total + value, k in STOPS) for k, value in next(log_probs).items()]


def _best(rows: list[Row], width: int) -> list[Row]:
    return heapq.nlargest(width, rows, key=lambda row: row[1] / len(row[0]))


@pytest.mark.parametrize("width", [1, 3, 5])
def test_equals_a_naive_uncached_search(captioner: PrefixCaptioner, width: int) -> None:
    embeds = prompts(captioner, 200)
    found = beam_search(captioner, embeds, width=width, max_new_tokens=LIMIT, stop_ids=STOPS)
    for row, expected in enumerate(naive_search(captioner, embeds, width)):
        for k, (ids, total, finished) in enumerate(expected):
            assert found.ids[row, k, : found.lengths[row, k]].tolist() == ids
            assert found.sums[row, k].item() == pytest.approx(total, abs=1e-9)
            assert bool(found.finished[row, k]) == finished
    assert 0.3 < found.finished.double().mean() < 0.9  # both kinds are there


def test_batch_equals_single_prompts(captioner: PrefixCaptioner) -> None:
    embeds = prompts(captioner, 8, seed=1)
    found = beam_search(captioner, embeds, width=4, max_new_tokens=LIMIT, stop_ids=STOPS)
    for row in range(len(embeds)):
        single = beam_search(captioner, embeds[row : row + 1], width=4, max_new_tokens=LIMIT, stop_ids=STOPS)
        steps = single.ids.shape[2]
        assert torch.equal(single.ids[0], found.ids[row, :, :steps])
        assert torch.allclose(single.averages[0], found.averages[row], atol=1e-12)


def test_finished_hypotheses_are_not_read_on(captioner: PrefixCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt's end saves the work for it; each row read is an unfinished hypothesis with its whole past."""
    rows, original = [], captioner.read

    def read(embeds: Tensor, cache: DynamicCache) -> Tensor:
        scores = original(embeds, cache)
        rows.append((len(embeds), cache.get_seq_length()))
        return scores

    monkeypatch.setattr(captioner, "read", read)
    found = beam_search(captioner, prompts(captioner, 8), width=3, max_new_tokens=LIMIT, stop_ids=STOPS)
    length = prompts(captioner, 1).shape[1]
    assert [past for _, past in rows] == list(range(length, length + len(rows)))
    assert rows[0][0] == 8
    assert rows[-1][0] < 24 and min(n for n, _ in rows[1:]) == rows[-1][0]
    assert not found.finished.all() and found.finished.any()


def test_hugging_face_finds_another(captioner: PrefixCaptioner) -> None:
    """It compares sums while it searches: of the same prompt it returns a caption that differs from this rule's."""
    embeds = prompts(captioner, 200)[HUGGING_FACE_DIFFERS:][:1]
    ours = beam_search(captioner, embeds, width=3, max_new_tokens=LIMIT, stop_ids=STOPS)
    stops = sorted(STOPS)
    theirs = captioner.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2]),
        generation_config=GenerationConfig(max_new_tokens=LIMIT, num_beams=3, eos_token_id=stops, pad_token_id=stops[0]),
    )
    best = ours.ids[0, 0, : ours.lengths[0, 0]].tolist()
    assert best == naive_search(captioner, embeds, 3)[0][0][0] == OURS
    assert theirs[0].tolist() == THEIRS


def hypotheses(sums: list[float], lengths: list[int], finished: list[bool]) -> Hypotheses:
    """One prompt's; all ids are 7."""
    steps = max(lengths)
    ids = torch.full((1, len(sums), steps), 7)
    return Hypotheses(ids, torch.tensor([sums]), torch.tensor([lengths]), torch.tensor([finished]))


def step(old: Hypotheses, probabilities: list[list[float]], width: int) -> tuple[Hypotheses, list[int]]:
    """Extend with these probabilities for each unfinished one; id 3 ends a caption."""
    log_probs = torch.tensor(probabilities).log()
    found, parents = extend(old, old.find_open(), log_probs, width, torch.tensor([3]))
    return found, parents.tolist()


def test_a_finished_hypothesis_keeps_sum_and_length() -> None:
    """Average -.5 after two tokens; the other's extensions have averages below that."""
    found, parents = step(hypotheses([-1.0, -1.2], [2, 2], [True, False]), [[0.1, 0.2, 0.3, 0.4]], 2)
    assert parents == [0, 1]
    assert found.ids.tolist() == [[[7, 7, PAD], [7, 7, 3]]]
    assert found.lengths.tolist() == [[2, 3]] and found.finished.tolist() == [[True, True]]
    assert torch.allclose(found.sums, torch.tensor([[-1.0, -1.2 + math.log(0.4)]]))


def test_a_finished_hypothesis_can_be_pushed_out() -> None:
    found, parents = step(hypotheses([-4.0, -1.2], [2, 2], [True, False]), [[0.1, 0.2, 0.3, 0.4]], 2)
    assert parents == [1, 1]
    assert found.ids[..., -1].tolist() == [[3, 2]] and found.finished.tolist() == [[True, False]]


def test_the_average_decides_and_not_the_sum() -> None:
    """Sum -1.8 over 3 tokens (-.6) beats the finished -1.4 over 2 (-.7), which a comparison of sums would keep."""
    found, parents = step(hypotheses([-1.4, -1.0], [2, 2], [True, False]), [[math.exp(-0.8), 0.1, 0.1, 0.1]], 1)
    assert parents == [1] and found.averages.item() == pytest.approx(-0.6)


def test_only_the_best_of_a_finished_one_counts() -> None:
    """It fills one place, not several."""
    found, parents = step(hypotheses([-0.1, -9.0], [1, 1], [True, False]), [[0.4, 0.3, 0.2, 0.1]], 3)
    assert parents == [0, 1, 1]
    assert found.ids[..., -1].tolist() == [[PAD, 0, 1]]


def test_wider_than_the_vocabulary(captioner: PrefixCaptioner) -> None:
    with pytest.raises(ValueError, match="BEAM_WIDTH is 478; expected at most the vocabulary's 477"):
        beam_search(captioner, prompts(captioner, 1), width=478, max_new_tokens=2, stop_ids=STOPS)

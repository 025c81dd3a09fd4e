"""All ways of decoding: greedy, sampling, captions that differ, and images of several prompt lengths at once."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_captioners import D_CLIP, SOFT, random_captioner
from torch import Tensor
from torch.nn import functional as F

from trainers.viecap.network import decoding
from trainers.viecap.network.decoding import DecodeOptions, GumbelNoise, decode, decode_prompts, mean_log_probs
from trainers.viecap.network.mapping import soft_input
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout

STOPS = frozenset(range(400, 477))
GREEDY = DecodeOptions("greedy", max_new_tokens=8, stop_ids=STOPS)
BEAM = replace(GREEDY, mode="beam", beam_width=3)
SAMPLE = replace(GREEDY, mode="sample")


@pytest.fixture(scope="module")
def captioner() -> PrefixCaptioner:
    return random_captioner(sharpness=0.6).double()


def images(n: int, seed: int = 0) -> Tensor:
    return soft_input(torch.randn(n, D_CLIP, generator=torch.Generator().manual_seed(seed)).double())


def prompt_ids(n: int, length: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(0, 400, (n, length), generator=torch.Generator().manual_seed(seed)).tolist()


def prompts(captioner: PrefixCaptioner, n: int) -> Tensor:
    with torch.no_grad():
        return captioner.prompt_embeds(images(n), prompt_ids(n, 4))


@torch.no_grad()
def naive_greedy(captioner: PrefixCaptioner, prompt: Tensor) -> tuple[list[int], float]:
    ids: list[int] = []
    values: list[float] = []
    while len(ids) < GREEDY.max_new_tokens and not (ids and ids[-1] in STOPS):
        sequence = torch.cat([prompt, captioner.embed(torch.tensor(ids, dtype=torch.long))])[None]
        log_probs = captioner.language_model(inputs_embeds=sequence).logits[0, -1].log_softmax(-1)
        ids.append(int(log_probs.argmax()))
        values.append(log_probs.max().item())
    return ids, sum(values) / len(values)


def test_greedy_equals_a_naive_loop_and_a_beam_of_one(captioner: PrefixCaptioner) -> None:
    embeds = prompts(captioner, 20)
    found = decode(captioner, embeds, GREEDY)
    beams = decode(captioner, embeds, replace(BEAM, beam_width=1))
    for row, prompt in enumerate(embeds):
        ids, score = naive_greedy(captioner, prompt)
        (caption,), (other,) = found[row], beams[row]
        assert caption.ids == other.ids == ids
        assert caption.score == pytest.approx(score, abs=1e-9) and other.score == pytest.approx(score, abs=1e-9)
        assert caption.truncated == other.truncated == (ids[-1] not in STOPS)
    assert {row[0].truncated for row in found} == {True, False}


def test_scores_of_given_captions(captioner: PrefixCaptioner) -> None:
    embeds, rows = prompts(captioner, 3), [[5, 6, 7], [410], [9, 401]]
    with torch.no_grad():
        found = mean_log_probs(captioner, embeds, rows)
        for row, ids in enumerate(rows):
            sequence = torch.cat([embeds[row], captioner.embed(torch.tensor(ids))])[None]
            scores = captioner.language_model(inputs_embeds=sequence).logits[0, embeds.shape[1] - 1 : -1]
            assert found[row].item() == pytest.approx(-F.cross_entropy(scores, torch.tensor(ids)).item(), abs=1e-12)


@pytest.mark.parametrize("options", [GREEDY, BEAM, replace(SAMPLE, num_return=2)], ids=["greedy", "beam", "sample"])
def test_images_of_several_prompt_lengths(captioner: PrefixCaptioner, options: DecodeOptions, monkeypatch) -> None:
    """In groups without padding, in the order of the images, each as if it were alone."""
    ids = [row for length in (3, 5, 3, 4, 5) for row in prompt_ids(1, length, seed=length)]
    vectors, sizes = images(5), []
    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args, **kwargs: sizes.append(args[1].shape) or original(*args, **kwargs))
    together = decode_prompts(captioner, vectors, ids, options, rows=range(10, 15))
    assert sizes == [(2, SOFT + 3, 32), (2, SOFT + 5, 32), (1, SOFT + 4, 32)]
    for place in range(5):
        (alone,) = decode_prompts(captioner, vectors[place : place + 1], [ids[place]], options, rows=[10 + place])
        assert [caption.ids for caption in alone] == [caption.ids for caption in together[place]]
        assert [c.score for c in alone] == pytest.approx([c.score for c in together[place]], abs=1e-9)


def test_only_a_hard_prompt() -> None:
    captioner = random_captioner(PromptLayout(soft_tokens=0), sharpness=0.6)
    found = decode_prompts(captioner, None, [[4, 5], [6, 7, 8]], BEAM)
    assert len(found) == 2 and all(row[0].ids for row in found)


def test_only_a_soft_prompt() -> None:
    captioner = random_captioner(PromptLayout(hard=False, soft_tokens=SOFT), sharpness=0.6)
    vectors = images(2).float()
    first, second = decode_prompts(captioner, vectors, [[], []], BEAM)
    assert first != second


@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_captions_differ(captioner: PrefixCaptioner, mode: str) -> None:
    options = replace(BEAM, mode=mode, beam_width=3, num_return=3)
    for row in decode(captioner, prompts(captioner, 10), options):
        assert len({tuple(caption.ids) for caption in row}) == 3
        assert [c.score for c in row] == sorted((c.score for c in row), reverse=True)


def beginning(ids: list[int]) -> tuple[int, ...]:
    return tuple(ids[:4])


def test_captions_differ_by_their_text(captioner: PrefixCaptioner, caplog: pytest.LogCaptureFixture) -> None:
    """Hypotheses that read alike count as one: a wider search finds others, behind those of the width asked for."""
    embeds = prompts(captioner, 10)
    options = replace(BEAM, num_return=3)
    plain = decode(captioner, embeds, options)
    found = decode(captioner, embeds, options, text_of=beginning)
    for row, before in zip(found, plain, strict=True):
        assert len({beginning(caption.ids) for caption in row}) == 3
        assert row[0] == before[0]
    assert any(len({beginning(caption.ids) for caption in row}) < 3 for row in plain)
    assert not caplog.records


def test_too_few_that_differ_is_said(captioner: PrefixCaptioner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = decode(captioner, prompts(captioner, 2), replace(BEAM, num_return=2), text_of=lambda ids: "same")
    assert [len(row) for row in rows] == [1, 1]
    assert "2 prompt(s) have fewer than 2 captions that differ" in caplog.text


def test_sampling_repeats_with_its_seed(captioner: PrefixCaptioner) -> None:
    embeds = prompts(captioner, 6)
    first, again = decode(captioner, embeds, SAMPLE), decode(captioner, embeds, SAMPLE)
    assert first == again
    assert first != decode(captioner, embeds, replace(SAMPLE, seed=1))
    state = torch.get_rng_state()
    decode(captioner, embeds, SAMPLE)
    assert torch.equal(torch.get_rng_state(), state)
    same = decode(captioner, embeds[:1].repeat(6, 1, 1), replace(SAMPLE, temperature=3.0))
    assert len({tuple(row[0].ids) for row in same}) > 1


def test_noise_draws_from_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    noise = GumbelNoise([(0, 0, 0)], torch.device("cpu"))
    drawn = Counter(int(noise(None, probabilities.log()[None]).argmax()) for _ in range(4000))
    assert [drawn[k] / 4000 for k in range(5)] == pytest.approx(probabilities.tolist(), abs=0.03)
    assert drawn[4] == 0


def test_sampling_keeps_to_the_mass_of_top_p(captioner: PrefixCaptioner) -> None:
    """After dividing the scores by the temperature."""
    embed = prompts(captioner, 1)
    with torch.no_grad():
        scores = captioner.language_model(inputs_embeds=embed).logits[0, -1]
    allowed = []
    for temperature in (1.0, 3.0):
        values, tokens = (scores / temperature).softmax(-1).sort(descending=True)
        kept = tokens[: int((values.cumsum(0) < 0.8).sum()) + 1].tolist()
        options = replace(SAMPLE, max_new_tokens=1, top_p=0.8, temperature=temperature)
        drawn = {row[0].ids[0] for row in decode(captioner, embed.repeat(200, 1, 1), options)}
        assert drawn <= set(kept) and len(drawn) > 1
        allowed.append((drawn, kept))
    assert allowed[1][0] - set(allowed[0][1])  # the higher temperature lets others in


def test_temperature_near_0_is_greedy(captioner: PrefixCaptioner) -> None:
    embeds = prompts(captioner, 6)
    found = decode(captioner, embeds, replace(SAMPLE, temperature=1e-3, top_p=1.0))
    assert [row[0].ids for row in found] == [row[0].ids for row in decode(captioner, embeds, GREEDY)]


def test_training_mode_and_length_are_checked(captioner: PrefixCaptioner) -> None:
    embeds = prompts(captioner, 1)
    with pytest.raises(ValueError, match=r"a sequence has 129 tokens.* has 128 positions"):
        decode(captioner, embeds, replace(GREEDY, max_new_tokens=123))
    assert decode(captioner, embeds, replace(GREEDY, max_new_tokens=122, stop_ids=frozenset({476})))[0][0].ids
    with pytest.raises(ValueError, match="evaluation mode"):
        decode(random_captioner().train(), embeds.float(), GREEDY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "nucleus"}, "DECODE is 'nucleus'; expected one of beam, greedy, sample"),
        ({"mode": "beam", "num_return": 6}, r"NUM_RETURN is 6; expected at most 5 \(BEAM_WIDTH\)"),
        ({"mode": "greedy", "num_return": 2}, r"NUM_RETURN is 2; expected at most 1 \(DECODE greedy"),
        ({"max_new_tokens": 0}, "MAX_NEW_TOKENS is 0; expected 1 or more"),
        ({"stop_ids": frozenset()}, "no token ends a caption"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeOptions(**{"stop_ids": STOPS, **changes})


def test_all_faults_of_options_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)DECODE.*MAX_NEW_TOKENS.*stop_ids"):
        DecodeOptions(mode="x", max_new_tokens=0)

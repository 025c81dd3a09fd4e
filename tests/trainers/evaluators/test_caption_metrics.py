"""CIDEr-D, BLEU and ROUGE-L: golden values, values by hand, and a slow version of the papers' formulas."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import reference_captions

from trainers.evaluators.caption_metrics import bleu, cider_d, count_common, rouge_l, sentence_bleu

REFERENCES = [
    ["a dog runs on the grass", "a brown dog is running on grass"],
    ["two people ride bikes", "two cyclists on a street", "people riding bicycles down the street"],
    ["a red bus on the road"],
]
PREDICTIONS = {
    "A": ["a dog runs on grass", "two people on bikes", "a red bus on the road"],
    "B": ["a cat", "two people", "a red bus on the road in the rain"],
}
GOLDEN = {
    "A": ((0.935507, 0.853997, 0.769053, 0.729804), 0.881476, 5.228638, (4.208963, 1.476950, 10.0)),
    "B": ((0.549639, 0.511686, 0.491567, 0.465987), 0.562707, 2.713399, (0.0, 1.523781, 6.616417)),
}
METRICS = [cider_d, bleu, sentence_bleu, rouge_l]


def split(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def corpus(seed: int, *, n_images: int = 12, words: int = 15) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Random texts of few different words, with repeated n-grams, empty candidates and references, and perfect captions."""
    draw = random.Random(seed)
    letters = [chr(ord("a") + number) for number in range(words)]

    def text(shortest: int = 0) -> list[str]:
        return draw.choices(letters, k=draw.randint(shortest, 12))

    references = [[text(draw.choice((0, 1))) for _ in range(draw.randint(1, 5))] for _ in range(n_images)]
    candidates = [draw.choice([text(), text(), draw.choice(texts)]) for texts in references]
    return references, candidates


# --- golden values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREDICTIONS)
def test_golden_table_is_met_to_1e_6(name: str) -> None:
    references, candidates = [split(texts) for texts in REFERENCES], split(PREDICTIONS[name])
    of_bleu, of_rouge, of_cider, per_image = GOLDEN[name]
    assert bleu(references, candidates) == pytest.approx(of_bleu, abs=1e-6)
    assert rouge_l(references, candidates)[0] == pytest.approx(of_rouge, abs=1e-6)
    mean, scores = cider_d(references, candidates)
    assert mean == pytest.approx(of_cider, abs=1e-6)
    assert scores == pytest.approx(np.array(per_image), abs=1e-6)
    assert all(type(value) is float for value in (mean, rouge_l(references, candidates)[0], *bleu(references, candidates)))


@pytest.mark.parametrize("seed", range(12))
def test_random_corpora_score_as_the_formulas_say(seed: int) -> None:
    references, candidates = corpus(seed, words=(4, 15, 60)[seed % 3])
    mean, scores = cider_d(references, candidates)
    assert scores == pytest.approx(np.array(reference_captions.cider_d(references, candidates)), abs=1e-9)
    assert mean == pytest.approx(scores.mean())
    assert bleu(references, candidates) == pytest.approx(reference_captions.bleu(references, candidates), rel=1e-9)
    mean, scores = sentence_bleu(references, candidates)
    assert scores == pytest.approx(np.array(reference_captions.sentence_bleu(references, candidates)), rel=1e-9)
    assert mean == pytest.approx(scores.mean())
    mean, scores = rouge_l(references, candidates)
    assert scores == pytest.approx(np.array(reference_captions.rouge_l(references, candidates)), abs=1e-12)
    assert mean == pytest.approx(scores.mean())


@pytest.mark.parametrize(
    ("references", "candidate", "expected"),
    [
        (["dutch"], "dutch", 1.0),
        (["a b c d e"], "a b x d", (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4) * math.exp(1 - 5 / 4)),
        (["b a", "a b c"], "a b", 1.0),  # the closest length, and the better match
        (["b a"], "a b", (1 * 1 / 2) ** (1 / 2)),
        (["a b"], "a a a", (1 / 3 * 1 / 2 / 2 * 1 / 4) ** (1 / 3)),
        (["a b c d e"], "a b c d e", 1.0),
        (["a"], "b c d e", 0.0),
        (["a"], "", 0.0),
    ],
)
def test_bleu_of_one_text_has_the_values_by_hand(references: list[str], candidate: str, expected: float) -> None:
    mean, scores = sentence_bleu([split(references)], split([candidate]))
    assert type(mean) is float and (mean, *scores) == pytest.approx((expected, expected))


def test_short_right_answers_are_right_for_the_bleu_of_texts_only() -> None:
    answers = [["dutch"], ["oil", "on", "canvas"]]
    assert sentence_bleu([[text] for text in answers], answers)[0] == pytest.approx(1.0)
    assert bleu([[text] for text in answers], answers)[3] < 0.04  # no text has four words


def test_random_corpora_have_what_makes_metrics_differ() -> None:
    """The comparison above would be idle on texts without overlap."""
    references, candidates = corpus(1)
    assert 0 < cider_d(references, candidates)[0] < 10
    assert all(0 < share < 1 for share in bleu(references, candidates))
    assert any(not text for text in candidates) and any(not text for texts in references for text in texts)


# --- CIDEr-D ---------------------------------------------------------------------------------------------------------------


def test_perfect_captions_with_references_of_their_own_score_10() -> None:
    texts = split(["a dog runs on grass", "two people ride bikes today", "the red bus stops here"])
    assert cider_d([[text] for text in texts], texts)[1] == pytest.approx([10.0] * 3)


def test_a_caption_of_three_words_has_no_4_grams_and_scores_three_quarters_at_most() -> None:
    texts = split(["a b c", "d e f g"])
    assert cider_d([[text] for text in texts], texts)[1] == pytest.approx([7.5, 10.0])


def test_words_of_every_image_weigh_nothing() -> None:
    references = [split(["the dog"]), split(["the cat"])]
    assert cider_d(references, split(["the", "the"]))[1] == pytest.approx([0.0, 0.0])
    assert cider_d([split(["a b c d"])], split(["a b c d"]))[0] == 0.0, "log 1 = 0: one image alone has no frequencies"


def test_length_is_punished_by_bigrams_with_sigma_6() -> None:
    """The candidate has three more bigrams, all words of weight log 2 and in no reference of the other image."""
    references, candidate = [split(["a b"]), split(["x y"])], "a b c d e".split()
    score = cider_d(references, [candidate, []])[1][0]
    cosines = [2 / math.sqrt(2 * 5), 1 / math.sqrt(1 * 4), 0, 0]
    assert score == pytest.approx(10 * sum(cosines) / 4 * math.exp(-(3**2) / (2 * 6**2)))


def test_repeating_a_word_gains_nothing() -> None:
    references = [split(["a b c d"]), split(["x y"])]
    once, often = (cider_d(references, split([text, "x"]))[1][0] for text in ("a b", "a b b b"))
    assert often < once


def test_an_image_is_the_mean_of_its_references() -> None:
    both = cider_d([split(["a b c d", "e f g h"]), split(["x"])], split(["a b c d", "x"]))[1][0]
    assert both == pytest.approx(5.0)


# --- BLEU ------------------------------------------------------------------------------------------------------------------


def test_brevity_penalty_by_hand() -> None:
    references, candidates = [split(["a b c d e f g h"])], split(["a b c d"])
    assert bleu(references, candidates) == pytest.approx([math.exp(1 - 8 / 4)] * 4, rel=1e-6)
    assert bleu([split(["a b c d"])], split(["a b c d e f g h"]))[0] == pytest.approx(4 / 8), "longer captions are not punished"


def test_closest_reference_length_counts_and_the_shorter_of_two() -> None:
    references = [split(["a b c d e f g h i", "a b c d e f", "a b"])]
    assert bleu(references, split(["a b c d"]))[0] == pytest.approx(1.0), "2 and 6 are as close to 4: 2 it is"
    assert bleu(references, split(["a b c d e"]))[0] == pytest.approx(math.exp(1 - 6 / 5))


def test_matches_are_clipped_by_the_reference_with_most() -> None:
    references = [split(["the cat is on the mat", "there is a cat on the mat"])]
    assert bleu(references, split(["the the the the the the the"]))[0] == pytest.approx(2 / 7)


def test_bleu_is_of_the_corpus_and_no_mean_of_images() -> None:
    references, candidates = [split(["a b c d"]), split(["e f g h i j k l"])], split(["a b c d", "e z z z z z z z"])
    assert bleu(references, candidates)[0] == pytest.approx(5 / 12)


def test_candidates_shorter_than_four_words_are_as_bad_as_the_constants_say() -> None:
    one, _, three, four = bleu([split(["a b c"])], split(["a b c"]))
    assert (one, three) == pytest.approx((1.0, 1.0), rel=1e-8)
    assert four == pytest.approx((1e-15 / 1e-9) ** 0.25, rel=1e-6)


# --- ROUGE-L ---------------------------------------------------------------------------------------------------------------


def test_rouge_by_hand_takes_precision_and_recall_from_different_references() -> None:
    references = [split(["a b c d e f g h", "a x"])]
    precision, recall = 3 / 4, 1 / 2  # `a b c` of 8 words; `a` of 2 words
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(references, split(["a b z c"]))[0] == pytest.approx(expected)


def test_rouge_needs_order_but_no_neighbours() -> None:
    assert rouge_l([split(["a b c d"])], split(["a b c d"]))[0] == pytest.approx(1.0)
    assert rouge_l([split(["a b c d"])], split(["d c b a"]))[0] == pytest.approx(1 / 4)


@pytest.mark.parametrize("seed", range(20))
def test_common_subsequence_is_the_textbook_s(seed: int) -> None:
    draw = random.Random(seed)
    text, other = (draw.choices("abcde", k=draw.randint(0, 90 if seed == 0 else 20)) for _ in range(2))
    assert count_common(text, other) == count_common(other, text) == reference_captions.longest_common(text, other)


# --- all -------------------------------------------------------------------------------------------------------------------


def test_empty_captions_score_0_and_spoil_nothing() -> None:
    references = [split(texts) for texts in REFERENCES]
    for candidates in ([[], [], []], split(["", "", PREDICTIONS["A"][2]])):
        cider, rouge = cider_d(references, candidates)[1], rouge_l(references, candidates)[1]
        assert cider[:2].tolist() == rouge[:2].tolist() == [0.0, 0.0]
        assert np.isfinite([*cider, *rouge, *bleu(references, candidates)]).all()
    assert (cider[2], rouge[2]) == pytest.approx((10.0, 1.0))
    assert bleu(references, [[], [], []]) == (0.0, 0.0, 0.0, 0.0)


def test_references_without_words_are_no_match_for_an_empty_caption() -> None:
    references, candidates = [[[], []], [["a"]]], [[], ["a"]]
    assert cider_d(references, candidates)[1][0] == rouge_l(references, candidates)[1][0] == 0.0
    assert bleu(references, candidates)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_images_and_of_references_does_not_matter(metric) -> None:
    references, candidates = corpus(3)
    order = random.Random(0).sample(range(len(candidates)), len(candidates))
    turned = metric([references[row][::-1] for row in order], [candidates[row] for row in order])
    straight = metric(references, candidates)
    if metric is bleu:
        assert turned == pytest.approx(straight)
    else:
        assert turned[1] == pytest.approx(straight[1][order])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ([], [], "got 0 captions and 0 lists of references"),
        ([[["a"]]], [["a"], ["b"]], "got 2 captions and 1 lists of references"),
        ([[["a"]], []], [["a"], ["b"]], "1 of 2 images have no reference caption; the first of them is row 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric, references: list, candidates: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(references, candidates)

"""CIDEr-D, BLEU and ROUGE-L of captions in numpy, with the constants that published captioning results were measured with.

CIDEr-D: Vedantam et al., CVPR 2015, arXiv 1411.5726. BLEU: Papineni et al., ACL 2002. ROUGE-L: Lin, ACL workshop 2004. Where
the widely used COCO scorer departs from the papers, so does this: CIDEr's length penalty counts bigrams, BLEU adds 1e-15 to
matches and 1e-9 to totals, ROUGE-L takes the best precision and the best recall from different references. `sentence_bleu` is
for texts that may be shorter than four words, with which BLEU-4 of a corpus can do nothing.

All functions take tokens: `references[i]` are the reference captions of image i, each a list of tokens, `candidates[i]` is the
caption to be judged. An empty candidate scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers.evaluators.ngram_counts import NgramCounts, Tokens, count_ngrams

CIDER_NGRAMS = BLEU_NGRAMS = 4
CIDER_SIGMA, CIDER_SCALE = 6.0, 10.0
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9
ROUGE_BETA = 1.2


def cider_d(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> tuple[float, np.ndarray]:
    """Return CIDEr-D, in [0, 10]: TF-IDF weighted n-gram agreement, n = 1-4, damped by the difference in length.

    Document frequencies are those of the given references, so a score belongs to its set of images; for a single image all
    weights are log 1 = 0 and so is the score.

    Returns:
        Mean, and the scores of the images, (N,), float64.
    Raises:
        ValueError: If there is nothing to score, the lists differ in length or an image has no reference.
    """
    texts, image = _join(references, candidates)
    similarity = np.zeros(len(texts))
    for counts in count_ngrams(texts, CIDER_NGRAMS):
        similarity += _cosine_to_candidate(counts, image, len(candidates))
    bigrams = np.maximum([len(text) - 1 for text in texts], 0)
    damping = np.exp(-((bigrams - bigrams[image]) ** 2) / (2 * CIDER_SIGMA**2))
    scores = _mean_by_image((CIDER_SCALE * similarity / CIDER_NGRAMS * damping)[len(candidates) :], image, len(candidates))
    return float(scores.mean()), scores


def _cosine_to_candidate(counts: NgramCounts, image: np.ndarray, n_images: int) -> np.ndarray:
    """Return, for every text, the clipped cosine of its TF-IDF vector and that of its image's candidate, (T,)."""
    of_reference = counts.text >= n_images
    rows_image = image[counts.text]
    key = rows_image * max(counts.n_grams, 1) + counts.gram
    # An n-gram counts once per image, however many references have it.
    frequency = np.bincount(np.unique(key[of_reference]) % max(counts.n_grams, 1), minlength=counts.n_grams)
    weight = counts.count * (np.log(n_images) - np.log(np.maximum(frequency, 1)))[counts.gram]
    norm = np.sqrt(counts.sum_by_text(weight**2, len(image)))
    products = np.minimum(weight, _look_up(key, key[~of_reference], weight[~of_reference])) * weight
    scale = norm * norm[image]
    return np.divide(counts.sum_by_text(products, len(image)), scale, out=np.zeros(len(image)), where=scale > 0)


def bleu(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> tuple[float, float, float, float]:
    """Return BLEU-1 to BLEU-4 of the corpus, in [0, 1], with the closest reference length of each image.

    Raises:
        ValueError: If there is nothing to score, the lists differ in length or an image has no reference.
    """
    texts, image = _join(references, candidates)
    n_images, lengths = len(candidates), np.array([len(text) for text in texts])
    scores, product = [], 1.0
    for n, counts in enumerate(count_ngrams(texts, BLEU_NGRAMS), 1):
        total = np.maximum(lengths[:n_images] - n + 1, 0).sum()
        product *= (_clipped_matches(counts, image, n_images).sum() + BLEU_TINY) / (total + BLEU_SMALL)
        scores.append(product ** (1 / n))
    ratio = (lengths[:n_images].sum() + BLEU_TINY) / (_closest_lengths(lengths, image, n_images).sum() + BLEU_SMALL)
    penalty = float(np.exp(1 - 1 / ratio)) if ratio < 1 else 1.0
    one, two, three, four = (float(score * penalty) for score in scores)
    return one, two, three, four


def sentence_bleu(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> tuple[float, np.ndarray]:
    """Return the mean BLEU of single candidates, in [0, 1], from n-grams of one to four words, or as many as a candidate has.

    So a right answer of one word has 1, as one of ten words has. The first length without a match counts as half a match, the
    second as a quarter (NIST's smoothing, as in Chen and Cherry, WMT 2014); without a common word the score is 0.

    Returns:
        Mean, and the scores of the images, (N,), float64.
    Raises:
        ValueError: If there is nothing to score, the lists differ in length or an image has no reference.
    """
    texts, image = _join(references, candidates)
    n_images, lengths = len(candidates), np.array([len(text) for text in texts])
    length = lengths[:n_images]
    logs, halvings, common = np.zeros(n_images), np.zeros(n_images), np.zeros(n_images, bool)
    for n, counts in enumerate(count_ngrams(texts, BLEU_NGRAMS), 1):
        matches, total = _clipped_matches(counts, image, n_images), np.maximum(length - n + 1, 0)
        halvings += (total > 0) & (matches == 0)
        precision = np.where(matches > 0, matches, 0.5**halvings) / np.maximum(total, 1)
        logs += np.where(total > 0, np.log(precision), 0.0)
        common |= matches > 0
    missing = np.maximum(_closest_lengths(lengths, image, n_images) / np.maximum(length, 1) - 1, 0)
    scores = common * np.exp(logs / np.clip(length, 1, BLEU_NGRAMS) - missing)
    return float(scores.mean()), scores


def _clipped_matches(counts: NgramCounts, image: np.ndarray, n_images: int) -> np.ndarray:
    """Return how many n-grams of each candidate its references have, each at most as often as one reference does, (N,)."""
    of_reference = counts.text >= n_images
    key = image[counts.text] * max(counts.n_grams, 1) + counts.gram
    keys, place = np.unique(key[of_reference], return_inverse=True)
    most = np.zeros(len(keys), np.int64)
    np.maximum.at(most, place, counts.count[of_reference])
    shared = np.minimum(counts.count[~of_reference], _look_up(key[~of_reference], keys, most))
    return np.bincount(counts.text[~of_reference], shared, minlength=n_images)


def _closest_lengths(lengths: np.ndarray, image: np.ndarray, n_images: int) -> np.ndarray:
    """Return, per image, the length of the reference that is closest to the candidate's; the shorter of two, (N,)."""
    of_image, length = image[n_images:], lengths[n_images:]
    order = np.lexsort((length, np.abs(length - lengths[of_image]), of_image))
    _, first = np.unique(of_image[order], return_index=True)
    return length[order][first]


def rouge_l(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> tuple[float, np.ndarray]:
    """Return ROUGE-L, in [0, 1]: F-measure (beta 1.2) of the longest common subsequence.

    Returns:
        Mean, and the scores of the images, (N,), float64.
    Raises:
        ValueError: If there is nothing to score, the lists differ in length or an image has no reference.
    """
    texts, image = _join(references, candidates)
    n_images, lengths = len(candidates), np.array([len(text) for text in texts])
    common = np.array([count_common(texts[candidate], text) for candidate, text in zip(image, texts, strict=True)])
    precision, recall = np.zeros(n_images), np.zeros(n_images)
    np.maximum.at(precision, image[n_images:], (common / np.maximum(lengths[image], 1))[n_images:])
    np.maximum.at(recall, image[n_images:], (common / np.maximum(lengths, 1))[n_images:])
    scale = recall + ROUGE_BETA**2 * precision
    scores = np.divide((1 + ROUGE_BETA**2) * precision * recall, scale, out=np.zeros(n_images), where=scale > 0)
    return float(scores.mean()), scores


def count_common(tokens: Tokens, other: Tokens) -> int:
    """Return the length of the longest common subsequence, by the bit-parallel rule of Hyyro (2004)."""
    places: dict[str, int] = {}
    for bit, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << bit
    everywhere = rest = (1 << len(tokens)) - 1
    for token in other:
        hit = rest & places.get(token, 0)
        rest = (rest + hit | rest - hit) & everywhere
    return len(tokens) - rest.bit_count()


def _join(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> tuple[list[Tokens], np.ndarray]:
    """Return the candidates, then all references, and the image of each text, (T,); an image's candidate has its number."""
    if not candidates or len(references) != len(candidates):
        counts = f"{len(candidates)} captions and {len(references)} lists of references"
        raise ValueError(f"got {counts}; expected as many of one as of the other, one or more")
    numbers = [len(texts) for texts in references]
    if not all(numbers):
        missing = f"{numbers.count(0)} of {len(numbers)} images have no reference caption"
        raise ValueError(f"{missing}; the first of them is row {numbers.index(0)}")
    rows = np.arange(len(candidates))
    image = np.concatenate([rows, np.repeat(rows, numbers)])
    return [*candidates, *(text for texts in references for text in texts)], image


def _mean_by_image(values: np.ndarray, image: np.ndarray, n_images: int) -> np.ndarray:
    """Return the mean of the references' values per image, (N,)."""
    of_image = image[n_images:]
    return np.bincount(of_image, values, minlength=n_images) / np.bincount(of_image, minlength=n_images)


def _look_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 where it is missing; `keys` are sorted and unique."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)

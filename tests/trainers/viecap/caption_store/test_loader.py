"""The caption loader: every caption once, short padding, and batches that depend on seed, epoch and number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from caption_corpora import NAMES, WordTokenizer, coco_shaped, hard_prompts, store_of, training_text

from trainers.epoch_order import Position
from trainers.viecap.caption_store import loader as loader_module
from trainers.viecap.caption_store.epoch_plan import BatchShape, noise_seed, plan_epoch
from trainers.viecap.caption_store.loader import CaptionBatch, CaptionLoader, LazyCaptionLoader, is_resident
from trainers.viecap.caption_store.store import CaptionStore
from trainers.viecap.caption_store.training_text import TrainingText, choose_rows, find_token_cap
from trainers.viecap.words.entities import PERSON

SHAPE = BatchShape(batch_size=8, soft_tokens=10, pad_multiple=4, bucket_batches=3)


@pytest.fixture(scope="module")
def corpus() -> CaptionStore:
    return coco_shaped(83)


@pytest.fixture(scope="module")
def text(corpus: CaptionStore) -> TrainingText:
    return training_text(corpus)


def make(
    corpus: CaptionStore, text: TrainingText, *, epoch: int = 0, done: int = 0, seed: int = 1, **options: object
) -> CaptionLoader:
    shape = options.pop("shape", SHAPE)
    return CaptionLoader(text, corpus.features, shape, position=lambda: Position(seed, epoch, done), **options)


def equal(left: CaptionBatch, right: CaptionBatch) -> bool:
    fields = ("features", "ids", "n_hard", "n_caption", "index")
    return left.noise_seed == right.noise_seed and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in fields
    )


def caption_of(batch: CaptionBatch, row: int) -> list[int]:
    start = int(batch.n_hard[row])
    return batch.ids[row, start : start + int(batch.n_caption[row])].tolist()


def test_an_epoch_visits_each_caption_once_and_drops_a_partial_batch(corpus: CaptionStore, text: TrainingText) -> None:
    loader = make(corpus, text)
    batches = list(loader)
    assert len(batches) == len(loader) == 83 // 8
    seen = torch.cat([batch.index for batch in batches]).tolist()
    assert len(seen) == len(set(seen)) == 80
    left_out = [
        set(range(83)) - set(torch.cat([batch.index for batch in make(corpus, text, epoch=e)]).tolist()) for e in range(4)
    ]
    assert len({frozenset(rows) for rows in left_out}) > 1


def test_a_batch_holds_prompt_caption_padding_and_the_rows_vectors(corpus: CaptionStore, text: TrainingText) -> None:
    batch = next(iter(make(corpus, text)))
    assert batch.features.dtype == torch.float32 and batch.ids.dtype == batch.n_hard.dtype == batch.index.dtype == torch.int64
    assert torch.equal(batch.features, corpus.features[batch.index].float())
    for row, number in enumerate(batch.index.tolist()):
        start, end = corpus.token_offset[number : number + 2].tolist()
        assert caption_of(batch, row) == corpus.tokens[start:end][: text.token_cap].tolist()
        assert batch.ids[row, int(batch.n_hard[row] + batch.n_caption[row]) :].count_nonzero() == 0
    assert (10 + batch.ids.shape[1]) % 4 == 0
    assert batch.ids.shape[1] - int((batch.n_hard + batch.n_caption).max()) < 4


def test_prompts_name_the_captions_entities(corpus: CaptionStore, text: TrainingText) -> None:
    prompts = hard_prompts(corpus)
    words = {prompts.table._prompts.entity_ids(name)[0]: name for name in (*NAMES, PERSON)}
    for batch in make(corpus, text):
        for row, number in enumerate(batch.index.tolist()):
            nouns = {PERSON if noun in ("man", "woman", "boy") else noun for noun in corpus.noun_table.of(number)}
            named = [words[each] for each in batch.ids[row, : batch.n_hard[row]].tolist() if each in words]
            assert set(named) <= nouns and len(named) == len(set(named))
            assert batch.n_hard[row] == (5 + 2 * len(named) - 1 if named else 6)


def test_masks_are_new_in_each_epoch_and_equal_for_an_equal_one(corpus: CaptionStore, text: TrainingText) -> None:
    first, again, second = (plan_epoch(text, SHAPE, seed=3, epoch=epoch).text for epoch in (0, 0, 1))
    assert np.array_equal(first.ids.flat, again.ids.flat) and not np.array_equal(first.n_hard, second.n_hard)
    assert not np.array_equal(first.n_hard, plan_epoch(text, SHAPE, seed=4, epoch=0).text.n_hard)


def test_without_mask_every_entity_stays_and_the_order_still_changes(corpus: CaptionStore) -> None:
    text = training_text(corpus, probability=0.0)
    first, second = (plan_epoch(text, SHAPE, seed=1, epoch=epoch).text for epoch in (0, 1))
    assert np.array_equal(first.n_hard, second.n_hard) and not np.array_equal(first.ids.flat, second.ids.flat)
    assert np.array_equal(np.sort(first.ids.flat), np.sort(second.ids.flat))


def test_padded_length_of_a_coco_shaped_epoch_is_within_a_tenth_of_the_real_one() -> None:
    text = training_text(coco_shaped(8_000))
    plans = {buckets: plan_epoch(text, BatchShape(80, 10, 4, buckets), seed=0, epoch=0) for buckets in (1, 50)}
    real = plans[50].real_tokens / plans[50].order.size
    assert text.token_cap in (39, 40)  # on COCO 39, and the next figure 30.4
    assert real == pytest.approx(30.4, abs=0.3)
    assert plans[50].padded_tokens <= 1.10 * plans[50].real_tokens
    assert plans[1].padded_tokens > 1.3 * plans[1].real_tokens  # plain shuffling is not enough
    assert plans[50].padding_share == pytest.approx(1 - plans[50].real_tokens / plans[50].padded_tokens)
    lengths = plans[50].text.ids.lengths[plans[50].order].mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 0.3  # batches are shuffled: short ones do not come first


def test_padded_tokens_count_what_the_batches_hold(corpus: CaptionStore, text: TrainingText) -> None:
    loader = make(corpus, text)
    batches = list(loader)
    assert loader.latest.padded_tokens == sum((10 + batch.ids.shape[1]) * 8 for batch in batches)
    assert loader.latest.real_tokens == sum(80 + int((batch.n_hard + batch.n_caption).sum()) for batch in batches)


def test_a_resumed_epoch_goes_on_with_the_same_batches(corpus: CaptionStore, text: TrainingText) -> None:
    whole, rest = list(make(corpus, text, epoch=2)), list(make(corpus, text, epoch=2, done=4))
    assert rest[:4] == [None] * 4 and len(rest) == len(whole)
    assert all(equal(*pair) for pair in zip(whole[4:], rest[4:], strict=True))
    assert list(make(corpus, text, done=10)) == [None] * 10


def test_placement_changes_no_batch(corpus: CaptionStore, text: TrainingText) -> None:
    loaders = [make(corpus, text, placement=name) for name in ("auto", "device", "host")]
    assert [loader.is_resident for loader in loaders] == [True, True, False]
    for batches in zip(*loaders, strict=True):
        assert equal(batches[0], batches[1]) and equal(batches[0], batches[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_of_a_gpu_equal_those_of_the_host(corpus: CaptionStore, text: TrainingText) -> None:
    loaders = [make(corpus, text, device="cuda", placement=name) for name in ("device", "host")] + [make(corpus, text)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [list(loader) for loader in loaders]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for resident, sent, host in zip(*batches, strict=True):
        assert resident.ids.is_cuda and sent.features.is_cuda
        assert torch.equal(resident.ids.cpu(), host.ids) and torch.equal(sent.ids.cpu(), host.ids)
        assert torch.equal(resident.features.cpu(), host.features) and torch.equal(sent.features.cpu(), host.features)


def test_auto_stays_on_the_host_if_a_quarter_of_the_free_memory_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4_000, 10_000))
    gpu = torch.device("cuda")
    assert [is_resident("auto", size, gpu) for size in (999, 1_000)] == [True, False]
    assert (
        is_resident("device", 10**9, gpu)
        and not is_resident("host", 1, gpu)
        and is_resident("auto", 10**12, torch.device("cpu"))
    )


def test_few_shots_are_chosen_by_the_seed_and_learned_from_alone(corpus: CaptionStore) -> None:
    rows = choose_rows(83, ratio=0.29, seed=1)
    assert len(rows) == 24 and len(choose_rows(100, ratio=0.29, seed=1)) == 29 and len(choose_rows(83, ratio=1.0, seed=1)) == 83
    assert np.array_equal(rows, choose_rows(83, ratio=0.29, seed=1)) and not np.array_equal(
        rows, choose_rows(83, ratio=0.29, seed=2)
    )
    loader = make(corpus, training_text(corpus, rows=rows))
    batches = list(loader)
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == rows.tolist()
    assert all(torch.equal(batch.features, corpus.features[batch.index].float()) for batch in batches)
    assert caption_of(batches[0], 0)[0] == int(batches[0].index[0]) % 999 + 1


def test_token_cap_follows_the_statistics_or_the_setting() -> None:
    lengths = np.array([10] * 99 + [60])
    assert find_token_cap(lengths, 0) == 60  # the longest is nearer than mean + 10 deviations
    assert find_token_cap(np.array([10] * 999 + [60]), 0) == int(10.05 + 10 * np.array([10] * 999 + [60]).std(ddof=1))
    assert find_token_cap(lengths, 12) == 12 and find_token_cap(np.array([7]), 0) == 7


def test_long_captions_are_cut_and_only_whole_ones_get_their_end() -> None:
    store = store_of([[1, 2, 3, 4], [5, 6], [7, 8, 9]], [["dog"], [], []])
    text = TrainingText(store, None, None, max_caption_tokens=3, eos_id=99)
    assert text.n_cut == 1 and [text.captions.take(np.array([row])).flat.tolist() for row in range(3)] == [
        [1, 2, 3], [5, 6, 99], [7, 8, 9, 99],
    ]  # fmt: skip
    plan = plan_epoch(text, BatchShape(3, 0, 1, 1), seed=0, epoch=0)
    assert (
        plan.text.n_hard.tolist() == [0, 0, 0] and plan.widths.tolist() == [4] and plan.padding_share == pytest.approx(2 / 12)
    )


def test_without_stored_vectors_the_rows_are_encoded_or_left_out(corpus: CaptionStore, text: TrainingText) -> None:
    def encode(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).half()[:, None]

    options = {"position": lambda: Position(1, 0, 0)}
    encoded = next(iter(CaptionLoader(text, None, SHAPE, encode_rows=encode, **options)))
    assert torch.equal(encoded.features[:, 0], encoded.index.float())
    assert next(iter(CaptionLoader(text, None, SHAPE, **options))).features is None


def test_noise_seeds_differ_by_seed_epoch_and_batch() -> None:
    seeds = Counter(noise_seed(*place) for place in np.ndindex(4, 5, 6))
    assert len(seeds) == 120 and noise_seed(1, 2, 3) == noise_seed(1, 2, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_too_few_captions_are_refused(corpus: CaptionStore, text: TrainingText) -> None:
    with pytest.raises(ValueError, match="83 training captions, less than one batch of 84.*BATCH_SIZE"):
        make(corpus, text, shape=BatchShape(84, 10))
    with pytest.raises(ValueError, match="0 training captions"):
        LazyCaptionLoader(0, 8, lambda: None)


def test_lazy_loader_knows_its_length_and_opens_nothing_before_it_iterates(corpus: CaptionStore, text: TrainingText) -> None:
    opened = []
    lazy = LazyCaptionLoader(83, 8, lambda: opened.append(1) or make(corpus, text))
    assert len(lazy) == 10 and lazy.latest is None and not opened
    assert len(list(lazy)) == 10 and len(list(lazy)) == 10 and opened == [1] and lazy.latest.order.shape == (10, 8)
    with pytest.raises(ValueError, match="83 captions to learn; expected 82"):
        iter(LazyCaptionLoader(82, 8, lambda: make(corpus, text)))


def test_report_counts_what_is_cut_empty_and_left_out() -> None:
    store = store_of([[1, 2, 3, 4], [5, 6]], [["dog", "cat", "bird"], []])
    lines = TrainingText(store, None, hard_prompts(store, max_entities=1), max_caption_tokens=3).report()
    assert lines[0] == "2 captions, 2.50 tokens on average, at most 3; 1 cut to 3"
    assert lines[1].startswith("1 captions without an effective entity; 0.50")
    assert lines[2] == "0 entities exceed the prompt's budget (none masked)"


def test_tokenizer_of_the_corpora_keeps_words_apart() -> None:
    assert WordTokenizer()(["a, b"], add_special_tokens=False)["input_ids"] == [[1000, 1001, 1002]]


def test_a_loader_without_room_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    with caplog.at_level("INFO", logger=loader_module.__name__):
        assert not is_resident("auto", 5, torch.device("cuda"))
    assert "stay in host memory" in caplog.text

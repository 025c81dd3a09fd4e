"""The comparison with the public ViECap: what both sides are given, tried without a checkout."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from tiny_gpt2s import tiny_tokenizer

from benchmarks import viecap_reference as reference


def test_rows_name_what_their_captions_say() -> None:
    rows = reference.make_rows(300)
    assert len(rows) == 300 and all(text.endswith(".") and text.count(".") == 1 for _, text, _ in rows)
    assert all(name in text.lower() for names, text, _ in rows for name in names) and any(names for names, *_ in rows)
    assert max(len(names) for names, *_ in reference.make_rows(300, most=1)) == 1


def test_a_row_is_pickled_without_the_vectors_of_the_others() -> None:
    assert len(pickle.dumps(reference.make_rows(200)[0])) < 10 * 2 * reference.D_CLIP


def test_our_side_reads_every_caption_with_its_vector(tmp_path: Path) -> None:
    rows = reference.make_rows(40)
    reference.write_rows(rows, tiny_tokenizer(), tmp_path / "store")
    batches = list(reference.open_rows(tmp_path / "store", tiny_tokenizer(), 20, mask=0.0))
    assert len(batches) == 2
    for batch in batches:
        for vector, row in zip(batch.features, batch.index.tolist(), strict=True):
            assert torch.equal(vector, rows[row][2].float())

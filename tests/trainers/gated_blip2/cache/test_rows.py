"""Rows of features: their bytes, their layout, and which of them are not finite."""

from __future__ import annotations

import pytest
import torch

from trainers.gated_blip2.cache.rows import RowLayout, Rows, bytes_of, find_broken


def make_rows(dtype: torch.dtype = torch.bfloat16) -> Rows:
    return Rows(torch.randn(3, 5, 8).to(dtype), torch.randn(3, 6), torch.randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_go_there_and_back(dtype: torch.dtype) -> None:
    rows = make_rows(dtype)
    found = RowLayout.of(rows).empty(3)
    for name, part in bytes_of(found).items():
        part[:] = bytes_of(rows)[name]
    assert found.tokens.dtype == dtype
    assert all(torch.equal(found.parts()[name], part) for name, part in rows.parts().items())


def test_a_layout_counts_bytes() -> None:
    assert RowLayout.of(make_rows()).row_bytes == 5 * 8 * 2 + 6 * 4 + 4 * 4
    assert RowLayout.of(Rows(torch.zeros(1, 257, 1408, dtype=torch.bfloat16))).row_bytes == 723_712
    assert make_rows().to("meta").tokens.device.type == "meta"


def test_style_is_fp32_and_tokens_are_floats() -> None:
    with pytest.raises(TypeError, match="features torch.float16"):
        RowLayout.of(Rows(torch.zeros(1, 5, 8), torch.zeros(1, 6).half()))
    with pytest.raises(TypeError, match="torch.int64"):
        RowLayout.of(Rows(torch.zeros(1, 5, 8, dtype=torch.int64)))


def test_broken_rows_are_named_with_their_part() -> None:
    rows = make_rows()
    assert find_broken(rows) == []
    rows.tokens[2, 4, 7] = torch.inf
    rows.logits[2, 0] = torch.nan
    rows.features[0, 1] = -torch.inf
    assert find_broken(rows) == [(0, "style vector"), (2, "ViT tokens, style logits")]


def test_a_sum_that_overflows_is_no_broken_row() -> None:
    assert find_broken(Rows(torch.full((2, 5, 8), 3e38), torch.full((2, 6), -3e38))) == []

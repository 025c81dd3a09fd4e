"""Mean losses and rates several times per epoch."""

from __future__ import annotations

import pytest
import torch

from trainers.viecap.progress import ProgressMeter


def add(meter: ProgressMeter, loss: float, tokens: int) -> None:
    meter.add(torch.tensor(loss), n_tokens=tokens, n_captions=2, n_real=15, n_positions=20)


def test_lines_are_due_at_even_parts_of_an_epoch() -> None:
    meter = ProgressMeter(5)
    assert [batch for batch in range(7084) if meter.is_due(batch, 7084)] == [1415, 2832, 4249, 5666, 7083]
    assert [batch for batch in range(3) if meter.is_due(batch, 3)] == [0, 1, 2]
    assert not any(ProgressMeter(0).is_due(batch, 10) for batch in range(10))


def test_a_stretch_is_the_mean_over_its_tokens_and_the_next_begins_anew() -> None:
    meter = ProgressMeter(1)
    add(meter, 6.0, 2)
    add(meter, 2.0, 6)
    found = meter.close()
    assert found.loss == 1.0 and found.padding_share == pytest.approx(0.25)
    assert found.tokens_per_second == pytest.approx(2 * found.captions_per_second, rel=1e-6)
    assert set(found.scalars()) == {"train/mean_caption_loss", "train/captions_per_second", "train/tokens_per_second",
                                    "train/padding_share"}  # fmt: skip
    add(meter, 9.0, 3)
    assert meter.close().loss == 3.0


def test_a_resumed_stretch_counts_what_was_before() -> None:
    meter, resumed = ProgressMeter(1), ProgressMeter(1)
    add(meter, 6.0, 2)
    resumed.load_state(meter.state(), torch.device("cpu"))
    add(resumed, 2.0, 6)
    assert resumed.close().loss == 1.0
    resumed.load_state(ProgressMeter(1).state(), torch.device("cpu"))
    add(resumed, 8.0, 4)
    assert resumed.close().loss == 2.0

"""Labels by hand."""

from __future__ import annotations

import pytest
import torch

from trainers.viecap.network.labels import find_label_positions


def test_labels_by_hand() -> None:
    """P 3, T 12; h 6, c 4: the caption starts at 9, so positions 8 to 11 predict it; in the second row h 2, c 3."""
    labels = find_label_positions(torch.tensor([6, 2]), torch.tensor([4, 3]), soft_tokens=3, width=12)
    assert labels.predicts.tolist() == [8, 9, 10, 11, 15 + 4, 15 + 5, 15 + 6]
    assert labels.tokens.tolist() == [6, 7, 8, 9, 12 + 2, 12 + 3, 12 + 4]
    assert len(labels) == 7


@pytest.mark.parametrize(("soft", "hard", "first"), [(3, 0, 2), (0, 6, 5)])
def test_one_prompt_only(soft: int, hard: int, first: int) -> None:
    labels = find_label_positions(torch.tensor([hard]), torch.tensor([2]), soft_tokens=soft, width=10)
    assert labels.predicts.tolist() == [first, first + 1]
    assert labels.tokens.tolist() == [hard, hard + 1]


def test_empty_captions_have_no_labels() -> None:
    labels = find_label_positions(torch.tensor([2, 2]), torch.tensor([0, 1]), soft_tokens=1, width=4)
    assert (labels.predicts.tolist(), labels.tokens.tolist()) == ([5 + 2], [4 + 2])


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="a row has 9 hard-prompt and caption tokens; the padded ids have 8"):
        find_label_positions(torch.tensor([5]), torch.tensor([4]), soft_tokens=3, width=8)
    with pytest.raises(ValueError, match="nothing could predict its first token"):
        find_label_positions(torch.tensor([0, 2]), torch.tensor([4, 4]), soft_tokens=0, width=8)

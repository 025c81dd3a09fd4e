"""The table of ViECap's parts: what is counted, and that a shuffled picture is always another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import viecap_ablation as ablation  # noqa: E402

from trainers.viecap.config import add_config  # noqa: E402


def test_object_f1_counts_names_over_all_pictures() -> None:
    scenes = {"1": {"circle", "digit two"}, "2": {"letter a"}, "3": {"star"}, "never captioned": {"ring"}}
    captions = {"1": "A red circle and a digit three.", "2": "A letter A on a striped background.", "3": "A dotted background."}
    # Named: circle, digit three, letter a; there: four; right: two.
    assert ablation.object_f1(captions, scenes) == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert ablation.object_f1({}, scenes) == 0.0


def test_the_letter_a_is_not_the_article() -> None:
    assert ablation.object_f1({"1": "A letter b."}, {"1": {"letter a"}}) == 0.0


@pytest.mark.parametrize("count", [2, 3, 50])
def test_no_picture_keeps_its_caption(count: int) -> None:
    order = ablation.other_pictures(count)
    assert sorted(order.tolist()) == list(range(count))
    assert not (order == torch.arange(count)).any()


def test_the_full_row_comes_first_and_none_is_missing() -> None:
    assert ablation.LINES == (ablation.FULL, ablation.SHUFFLED, *list(ablation.ROWS)[1:])


def test_rows_change_keys_that_exist() -> None:
    from yacs.config import CfgNode

    cfg = CfgNode({"TRAINER": CfgNode()})
    add_config(cfg)
    for words in ablation.ROWS.values():
        cfg.merge_from_list(list(words))
    assert ablation.ROWS[ablation.FULL] == ()

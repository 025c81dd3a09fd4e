"""The benchmark of ViECap: published counts, shares of an epoch, and both loops at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from benchmarks import viecap_flops, viecap_speed
from benchmarks.viecap_corpus import FIXED, SOFT, coco_shaped
from benchmarks.viecap_naive import NaiveData, pad_rows
from benchmarks.viecap_speed import main, show_cpu
from benchmarks.viecap_step import Sizes, build_captioner, compare_loss
from trainers.epoch_order import Position
from trainers.viecap.caption_store.epoch_plan import BatchShape
from trainers.viecap.caption_store.loader import CaptionLoader

TOY = ["--layers", "1", "--width", "32", "--heads", "2", "--vocabulary", "600", "--mapper-layers", "1", "--batch", "8",
       "--captions", "200", "--rounds", "2", "--warmup", "0"]  # fmt: skip


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json", str(folder / "result.json")])
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_flops_are_the_expected_ones(tmp_path: Path, monkeypatch, capsys) -> None:
    result = run(tmp_path, "flops", "--captions", "4800")
    assert [round(row["counted"], 2) for row in result["figures"]] == pytest.approx([59.27, 23.77, 2.49], abs=0.01)
    epoch = result["epoch"]
    assert epoch["fixed_padding"] == pytest.approx(0.58, abs=0.015) and epoch["fixed_labels"] == pytest.approx(0.17, abs=0.01)
    assert epoch["hard_length"] == pytest.approx(8.34, abs=0.3) and epoch["real_length"] == pytest.approx(30.4, abs=0.5)
    assert epoch["length"] <= 1.1 * epoch["real_length"] < epoch["shuffled_length"] < FIXED
    printed = capsys.readouterr().out
    assert f"{100 * epoch['fixed_padding']:.1f}%" in printed and f"{100 * epoch['labels']:.1f}%" in printed
    result["figures"][1]["deviation"] = 0.011
    monkeypatch.setattr(viecap_flops, "measure", lambda n_captions: result)
    with pytest.raises(SystemExit, match="a figure is off"):
        main(["flops"])


def test_flops_notice_scores_of_all_positions() -> None:
    small = {key: value for key, value in vars(GPT2Config(n_layer=1)).items() if key in ("n_layer", "n_embd", "n_head")}
    counted = viecap_flops.count_steps(GPT2Config(**small))
    head = 3 * 2 * 768 * 50257 / 1e9  # per position, forward and backward
    saved = counted[viecap_flops.NAIVE] - counted[viecap_flops.OURS]
    assert saved > (FIXED - viecap_flops.LABELS) * head


def test_cpu_trains_both_on_the_same_captions(tmp_path: Path, capsys) -> None:
    result = run(tmp_path, "cpu", *TOY, "--clock", "cpu")
    assert abs(result["loss_on_equal_batch"] - 1) < 1e-5
    assert result["loss"]["naive"] == pytest.approx(result["loss"]["ours"], rel=0.01)
    assert result["captions_per_s"]["ours"] == pytest.approx(8 / result["step_s"]["ours"])
    assert result["speed_up"] == pytest.approx(result["captions_per_s"]["ours"] / result["captions_per_s"]["naive"])
    assert 0 < result["data_s"]["ours"] < result["step_s"]["ours"]
    assert "(goal at least 1.5)" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["speed_up", "loss_on_equal_batch", "data_share"])
def test_cpu_notices_a_missed_goal(key: str) -> None:
    both = {"ours": 0.01, "naive": 0.01}
    result = {
        "sizes": vars(Sizes()), "captions_per_s": both, "step_s": both, "data_s": both, "data_share": both, "speed_up": 1.6,
        "loss": both, "loss_on_equal_batch": 1.0, "clock": "wall", "threads": 1,
    }  # fmt: skip
    assert show_cpu(result)
    missed = {"speed_up": 1.4, "loss_on_equal_batch": 1.02, "data_share": {"ours": 0.03, "naive": 0.0}}
    assert not show_cpu(result | {key: missed[key]})
    assert viecap_speed.DATA_GOAL == 0.02


def test_the_naive_loop_sees_the_same_captions() -> None:
    corpus = coco_shaped(64, width=512)
    loader = CaptionLoader(corpus.text, corpus.store.features, BatchShape(8, SOFT), position=lambda: Position(0, 0, 0))
    ours = next(iter(loader))
    naive = NaiveData(corpus).batch(ours.index.tolist())
    assert torch.equal(naive.features, ours.features)
    assert naive.ids.shape == (8, FIXED - SOFT) and naive.labels.shape == naive.mask.shape == (8, FIXED)
    for row in range(8):
        start, length = int(ours.n_hard[row]), int(ours.n_caption[row])
        assert naive.labels[row][naive.labels[row] > 0].tolist() == ours.ids[row, start : start + length].tolist()
    assert int(naive.mask.sum()) == int((naive.ids > 0).sum()) + 8 * SOFT


def test_agreement_notices_another_caption() -> None:
    corpus = coco_shaped(64, width=512)
    loader = CaptionLoader(corpus.text, corpus.store.features, BatchShape(8, SOFT), position=lambda: Position(0, 0, 0))
    captioner = build_captioner(Sizes(layers=1, width=32, heads=2, vocabulary=600, mapper_layers=1))
    assert compare_loss(captioner, next(iter(loader))) == pytest.approx(1, abs=1e-5)
    assert captioner.training


def test_what_exceeds_the_fixed_length_is_cut() -> None:
    batch = pad_rows(torch.zeros(1, 4), [[5] * 24], [[7] * 60])
    assert batch.ids[0].tolist() == [5] * 24 + [7] * 39
    assert batch.labels[0].tolist() == [0] * (SOFT + 23) + [7] * 40

"""Every subcommand of the benchmark of BgObjLLaVA runs at toy size, and notices what it is there to notice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import bgobj_flops, bgobj_requests
from benchmarks.bgobj_llava import main
from benchmarks.bgobj_models import read_config, scale_config
from benchmarks.bgobj_requests import KV, OFF, STOCK, TOKENS

TOY = ["--side", "56", "--vision", "4", "64", "--llm", "2", "64", "--rounds", "1", "--warmup", "0", "--questions", "2",
       "--max-new-tokens", "3"]  # fmt: skip


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json", str(folder / "result.json")])
    return json.loads((folder / "result.json").read_text("utf-8"))


def write_video(folder: Path, *, noise: int, n_frames: int = 16) -> Path:
    """Write frames of a fixed camera before which a square moves."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    scene = rng.integers(40, 200, (120, 160, 3)).astype(np.int16)
    for number in range(n_frames):
        frame = scene + rng.integers(-noise, noise + 1, scene.shape) if noise else scene.copy()
        frame[20:40, 8 * number : 8 * number + 20] = 250
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def test_flops_agree_with_operators_and_expectations(tmp_path, monkeypatch, capsys) -> None:
    few = {"tower, 115 patches": 68.4, "projector, 576 patches": 24.2}
    monkeypatch.setattr(bgobj_flops, "EXPECTED", few)
    result = run(tmp_path, "flops")
    assert "arithmetic and operators agree: True" in capsys.readouterr().out
    assert [row["name"] for row in result["figures"]] == list(few)
    assert all(abs(row["deviation"]) < 0.005 for row in result["figures"])
    assert [row["n_obj"] for row in result["table"]] == [29, 58, 115, 173, 288]
    assert bgobj_flops.show(result)
    result["figures"][0]["deviation"] = 0.006
    assert not bgobj_flops.show(result)
    monkeypatch.setattr(bgobj_flops, "measure", lambda: result)
    with pytest.raises(SystemExit, match="a figure is off"):
        main(["flops"])


def test_cpu_times_all_ways_on_the_same_answers(tmp_path, capsys) -> None:
    result = run(tmp_path, "cpu", *TOY, "--entries", "4", "--no-memory", "--detector", "bgsub")
    assert {(row["way"], row["question"]) for row in result["rows"]} == {
        (way, question) for way in (STOCK, OFF, TOKENS, KV) for question in (1, 2)
    }
    assert (result["objects"], result["background"]) == (3, 13)
    assert all(row["ttft_s"] > 0 and row["per_token_s"] > 0 for row in result["rows"])
    assert {"ttft_warm_kv_over_stock", "ttft_cold_over_stock", "decode_warm_kv_over_stock"} < set(result)
    assert result["ttft_warm_kv_and_detector_over_stock"] > 0 and result["look_up"]["entries"] == 4
    assert "look-up among 4 entries" in capsys.readouterr().out


def test_peak_of_one_way_is_that_of_the_process(tmp_path) -> None:
    assert run(tmp_path, "cpu", *TOY, "--peak-of", KV)["peak_bytes"] > 2**26


def test_gpu_is_skipped_without_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tmp_path, "gpu") == {"skipped": "no CUDA device"}


@pytest.mark.parametrize(("noise", "exact"), [(0, True), (2, False)])
def test_video_finds_backgrounds_again(tmp_path, noise, exact) -> None:
    source = write_video(tmp_path / "frames", noise=noise)
    result = run(tmp_path, "video", str(source), "--step", "1", "--bgsub-frames", "9")
    contained, *approx = result["rows"]
    assert result["frames"] == 16 and result["object_share_max"] > 0
    assert (contained["hit_rate_cache"] > 0.2) is exact and (contained["hit_rate_cache"] == 0) is not exact
    assert all(row["hit_rate_cache"] > 0.2 and row["entries"] < 16 for row in approx)
    assert contained["kv_bytes"] > 64 * contained["token_bytes"] > 0


def test_video_says_what_it_cannot_read(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (("missing.avi", "no such file or folder"), ("empty", "no frames")):
        with pytest.raises(SystemExit, match=words):
            main(["video", str(tmp_path / source)])


def test_a_changed_answer_and_a_missed_hit_stop_the_benchmark() -> None:
    def answer(first: float, hit: str = "") -> Any:
        return SimpleNamespace(ids=[1], logits_first=torch.tensor([first]), trace={"hit": hit, "miss": ""})

    good = {OFF: answer(1.0), TOKENS: answer(1.0, TOKENS), KV: answer(1.0, KV)}
    bgobj_requests.check_equal(good, 2)
    with pytest.raises(SystemExit, match="the answer differs"):
        bgobj_requests.check_equal({**good, KV: answer(1.5, KV)}, 2)
    with pytest.raises(SystemExit, match="question 2, tokens: hit ''"):
        bgobj_requests.check_equal({**good, TOKENS: answer(1.0)}, 2)
    with pytest.raises(SystemExit):
        bgobj_requests.check_equal(good, 1)


def test_one_question_has_no_warm_one(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["cpu", "--questions", "1"])
    assert "expected two or more" in capsys.readouterr().err


def test_small_shapes_keep_the_proportions_of_7b() -> None:
    whole, small = read_config(), scale_config(side_px=336, vision=(9, 256), llm=(8, 1024))
    assert small.text_config.intermediate_size / 1024 == whole.text_config.intermediate_size / 4096
    assert small.text_config.head_dim == 128 and small.vision_config.num_attention_heads == 4
    assert (small.text_config.vocab_size, small.image_seq_length) == (32064, 576)

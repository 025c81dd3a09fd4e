"""Every subcommand of the benchmark of GatedBLIP2 runs on the miniature, and notices what it is there to notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import gated_blip2_memory  # noqa: E402
from benchmarks.gated_blip2_bench import STATES, Bench, Case  # noqa: E402
from benchmarks.gated_blip2_memory import CASES, PEAK, main, show_memory, show_speed, show_updates  # noqa: E402

TINY = ["--device", "cpu", "--config", "tiny"]


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json", str(folder / "result.json")])
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_memory_does_the_work_of_every_state(tmp_path, monkeypatch, capsys) -> None:
    cases = (Case("original", goals={"training": 1.0}), Case("gates_proj", cached=True, grad_ckpt=True, batch=3))
    monkeypatch.setattr(gated_blip2_memory, "CASES", cases)
    result = run(tmp_path, "memory", *TINY)
    assert [row["title"] for row in result["rows"]] == [
        "original, fp32, live, batch 2", "gates_proj, fp32, cached, batch 3, GRAD_CKPT",
    ]  # fmt: skip
    for row in result["rows"]:
        assert set(row["peaks"]) == {"loading", *STATES} and not any(row["peaks"].values())
        assert len(row["losses"]) == 4 and all(loss > 0 for loss in row["losses"])
        assert row["estimate"]["total"] > row["estimate"]["weights"] > 0
        assert row["case"]["goals"] == {}
    assert capsys.readouterr().out.count("no peaks on a CPU") == 8


def test_presets_and_quantisation_choose_the_cases(monkeypatch) -> None:
    args = gated_blip2_memory.parse_args(["memory", "--preset", "gates_proj", "--quant", "nf4"])
    assert [case.title for case in gated_blip2_memory._chosen(args)] == ["gates_proj, amp, cached, batch 2, nf4"]
    args = gated_blip2_memory.parse_args(["memory"])
    assert gated_blip2_memory._chosen(args) == list(CASES)
    goals = {case.title: case.goals.get("training", 0) / PEAK for case in CASES}
    assert goals["original, amp, live, batch 2"] == 1 and goals["original_live, amp, cached, batch 2"] == pytest.approx(0.8)


def test_a_peak_above_its_goal_and_a_failed_case_are_missed(capsys) -> None:
    peaks = {state: {"allocated": 2**30, "reserved": 2**31} for state in STATES}
    row = {"title": "a", "case": {"goals": {"training": 1.1}}, "peaks": peaks, "estimate": {"total": 2**29}}
    result = {"device": "GPU", "config": "full", "rows": [row]}
    assert show_memory(result)
    assert "training        1.000 (   2.000)    0.108x  goal 1.10: met" in capsys.readouterr().out
    row["case"]["goals"]["training"] = 0.9
    assert not show_memory(result) and "MISSED" in capsys.readouterr().out
    failed = {"title": "b", "case": {"goals": {}}, "error": ["out of memory"]}
    assert not show_memory({**result, "rows": [failed]}) and "failed: out of memory" in capsys.readouterr().out


def test_speed_compares_live_and_cached_updates(tmp_path, capsys) -> None:
    result = run(tmp_path, "speed", *TINY, "--batches", "2", "--rounds", "1", "--warmup", "0")
    (row,) = result["rows"]
    assert row["ratio"] == row["seconds"]["live"] / row["seconds"]["cached"] > 0
    assert result["answers"]["ratio"] == 8 * result["answers"]["seconds"]["1"] / result["answers"]["seconds"]["8"]
    assert "cached over live" in capsys.readouterr().out
    for ratio, expected in ((1.3, True), (1.1, False)):
        assert show_speed({**result, "rows": [{**row, "ratio": ratio}], "answers": {"ratio": 2.5}}) is expected
    assert not show_speed({**result, "rows": [], "answers": {"ratio": 1.9}})


def test_updates_reach_the_gates(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gated_blip2_memory, "N_UPDATES", 3)
    result = run(tmp_path, "updates", *TINY)
    assert [row["title"].split(", ")[1] for row in result["rows"]] == ["fp32", "bf16"]
    for row in result["rows"]:
        assert len(row["losses"]) == 3 and row["smallest_gradient"] > 0 and row["skipped"] == 0
        assert row["losses"][-1] < row["losses"][0]
    assert "MISSED" not in capsys.readouterr().out
    row = result["rows"][0]
    assert not show_updates({**result, "rows": [{**row, "skipped": 1}]})
    assert not show_updates({**result, "rows": [{**row, "smallest_gradient": 0.0}]})


def test_a_released_model_cannot_encode_pictures() -> None:
    bench = Bench(Case("gates", "fp32"), "tiny", "cpu")
    assert len(bench.encode(2)) == 2
    bench.release()
    with pytest.raises(RuntimeError, match="released"):
        bench.encode(2)


@pytest.mark.parametrize("kind", ["memory", "speed", "updates"])
def test_without_a_gpu_the_full_size_is_skipped(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tmp_path, kind) == {"skipped": "no CUDA device"}

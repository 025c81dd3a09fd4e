"""The ladder's statistics, its rungs, and what the table makes of runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import bgobj_ladder  # noqa: E402
from ladder_figures import count_flips, half_width, paired_difference  # noqa: E402
from ladder_runs import spread  # noqa: E402
from ladder_table import TableOfRungs  # noqa: E402


def test_interval_of_a_share_is_the_normal_one() -> None:
    assert half_width([1.0] * 50 + [0.0] * 50) == pytest.approx(9.8, abs=0.01)
    assert half_width([1.0] * 10) == 0.0


def test_paired_difference_is_narrower_than_that_of_unrelated_answers() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(800) < 0.5).astype(float)
    ours = np.where(rng.random(800) < 0.05, 1.0, base)
    mean, low, high = paired_difference(ours, base)
    assert mean == pytest.approx(100 * (ours - base).mean())
    assert low < mean < high and high - low < 4  # unrelated: about 10 points
    assert paired_difference(base, base) == (0.0, 0.0, 0.0)


def test_flips_are_counted_on_the_same_questions_only() -> None:
    rows = [{"impath": "a", "question": str(number), "answer": "red"} for number in range(3)]
    other = [dict(row) for row in rows]
    other[1]["answer"] = "blue"
    assert count_flips(rows, other) == 1
    with pytest.raises(ValueError, match="not about the same questions"):
        count_flips(rows, list(reversed(other)))


def test_every_rung_of_the_folder_is_read_and_ranges_are_understood() -> None:
    rungs = bgobj_ladder.read_rungs()
    assert list(rungs) == ["E0", "E1", "E2", "E2i", "E3", "E4", "E5", "E6", "E7", "E8", "E9"]
    assert [rung.name for rung in bgobj_ladder.choose("E0-E3", rungs)] == ["E0", "E1", "E2", "E2i", "E3"]
    assert [rung.name for rung in bgobj_ladder.choose("E5,E0,E5", rungs)] == ["E5", "E0"]
    with pytest.raises(ValueError, match="names E99; expected some of E0, E1"):
        bgobj_ladder.choose("E0,E99", rungs)


def test_controls_borrow_weights_of_rungs_that_train_and_hide_groups() -> None:
    rungs = bgobj_ladder.read_rungs()
    controls = {rung.name: rung for rung in bgobj_ladder.make_controls(rungs)}
    assert all(rungs[rung.weights].trains for rung in controls.values() if rung.weights)
    assert controls["question"].visible == () and controls["obj"].visible == ("obj",)
    assert not bgobj_ladder.caches(controls["E5-stock"]) and bgobj_ladder.caches(controls["E5-raster"])


def test_controls_take_the_other_position() -> None:
    rungs = bgobj_ladder.read_rungs()
    names = {rung.name: rung for rung in bgobj_ladder.make_controls(rungs, "raster")}
    assert names["E5-sequential"].overrides["TRAINER.BGOBJLLAVA.POSITION"] == "sequential"
    assert names["E3-sequential"].trains is False


def test_limited_questions_are_runs_of_neighbours_over_the_whole_split() -> None:
    chosen = spread(1000, 100)
    assert len(chosen) == len(set(chosen)) == 100
    assert chosen[:20] == list(range(20)) and chosen[-1] >= 800
    assert spread(30, 0) == spread(30, 99) == list(range(30))


def write_run(folder: Path, answers: str, **facts: object) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"impath": "a.png", "question": str(number), "answer": answer, "scores": {"accuracy": float(answer == "y")}, "n_obj": 4}
        | {name: value[number] for name, value in facts.items()}
        for number, answer in enumerate(answers)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return folder


def test_table_holds_accuracy_difference_flips_hits_and_ratios(tmp_path: Path) -> None:
    table = TableOfRungs()
    stock = write_run(tmp_path / "e0-timed", "yyyn", seconds_to_first=[2.0, 2.0, 2.0, 2.0])
    table.add("E0", "stock", 1, 0, write_run(tmp_path / "e0", "yyyn"), stock)
    timed = write_run(tmp_path / "e5-timed", "ynyy", ttft_s=[3.0, 1.0, 1.0, 1.0], hit=["", "kv", "kv", "kv"])
    table.add("E5", "tuned", 1, 2, write_run(tmp_path / "e5", "ynyn"), timed)
    line = table.line("E5", 2, table.cells["E5", 2])
    assert line[3] == "50.00" and line[5].startswith("-25.00 [") and line[6] == "1" and line[7] == "4"
    assert line[8:11] == ("75.0", "1.50x", "0.50x") and line[-1] == "1"
    text = table.write(tmp_path)
    assert (tmp_path / "table.md").read_text("utf-8").endswith(text + "\n")
    assert json.loads((tmp_path / "table.json").read_text("utf-8"))[1]["accuracy"] == 50.0

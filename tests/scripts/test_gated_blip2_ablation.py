"""The table of GatedBLIP2: which rows there are, and what is counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import gated_blip2_ablation as ablation  # noqa: E402


def write_run(folder: Path, results: dict[str, float]) -> None:
    asked = [("style", 1.0), ("style", 0.0), ("colour", 1.0), ("count", 1.0), ("count", 0.0), ("object", 0.0)]
    lines = [json.dumps({"question_type": kind, "scores": {"accuracy": score}}) for kind, score in asked]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "results.json").write_text(json.dumps({"test": results}), "utf-8")


def test_questions_for_the_style_are_counted_apart(tmp_path: Path) -> None:
    write_run(tmp_path, {"accuracy": 50.0, "style_gap": 10.0, "style_gap/style": 40.0})
    assert ablation.read_scores(tmp_path) == {"style": 50.0, "others": 50.0, "all": 50.0, "style gap": 40.0}
    write_run(tmp_path, {"accuracy": 50.0})
    assert "style gap" not in ablation.read_scores(tmp_path)


def test_rows_change_keys_that_exist_to_allowed_values() -> None:
    from dassl.config import get_cfg_default

    from trainers.config import add_trainer_configs, problems_with_choices
    from trainers.gated_blip2.config import CHOICES, RANGES

    for name, words in ablation.ROWS.items():
        cfg = get_cfg_default()
        add_trainer_configs(cfg)
        cfg.merge_from_list(list(words))
        assert problems_with_choices(cfg.TRAINER.GATEDBLIP2, name, CHOICES, RANGES) == []
    assert ablation.ROWS["gates_proj"] == ()


def test_the_short_table_is_a_part_of_the_long_one() -> None:
    assert set(ablation.SHORT) < set(ablation.ROWS)
    assert ablation.parse_args(["--rows", "short", "--seeds", "1", "2"]).seeds == [1, 2]


def test_the_frozen_row_is_only_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Trainer:
        def test(self) -> None:
            write_run(tmp_path / "frozen" / "seed2", {"accuracy": 50.0})

    class Opened:
        def __init__(self, words: list[str]) -> None:
            opened.append(words)

        def __enter__(self) -> Trainer:
            return Trainer()

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(ablation, "trained", Opened)
    scores = ablation.Ablation(ablation.parse_args(["--output", str(tmp_path)])).run("frozen", 2)
    assert scores["others"] == 50.0
    (words,) = opened
    assert "--eval-only" in words and words[-2:] == ["TRAINER.GATEDBLIP2.PRESET", "frozen"]

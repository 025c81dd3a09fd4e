"""BgObjLLaVA through train.py: training, testing stored epochs and the base, building only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_world import make_cfg

import train
from trainers import runs
from trainers.config_merge import flatten

Start = Callable[..., Path]


@pytest.fixture
def start(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return `start(run, *flags, **settings) -> run folder`: train.py on the tiny world."""
    monkeypatch.setattr(runs, "collect_env_info", lambda: "machine")
    own = ("DATASET", "DATALOADER", "MODEL", "OPTIM", "TEST", "TRAIN", "USE_CUDA", "TRAINER.BGOBJLLAVA.GEN")

    def run(name: str, *flags: str, **settings: Any) -> Path:
        cfg = make_cfg(tiny_world, tmp_path / name, "BgObjLLaVA", {"OPTIM.MAX_EPOCH": 2})
        pairs = {key: value for key, value in flatten(cfg) if key.startswith(own) and value != "" and key != "TRAINER.NAME"}
        pairs |= {key.replace("__", "."): value for key, value in settings.items()}
        words = [str(word) for pair in pairs.items() for word in pair]
        folder = tmp_path / name
        train.main(["--trainer", "BgObjLLaVA", "--output-dir", str(folder), "--seed", "1", *flags, *words])
        return folder

    return run


def results_of(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "results.json").read_text("utf-8"))


def answers_of(folder: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_stored_epochs_and_the_base_are_tested(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("run")
    assert "* accuracy: " in capsys.readouterr().out
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["status"] == "finished" and record["data"]["classes"] == ["colour", "count"]
    said, results = answers_of(run), results_of(run)
    for epoch, path in ((2, "epoch-2"), (None, "last"), (1, "epoch-1")):
        flags = ["--eval-only", "--model-dir", str(run), *([] if epoch is None else ["--load-epoch", str(epoch)])]
        again = start(f"again {path}", *flags)
        assert f"adapter/{path} (epoch {epoch or 2})" in capsys.readouterr().out.replace("\\", "/")
        if epoch != 1:
            assert (answers_of(again), results_of(again)) == (said, results)
    base = start("base", "--eval-only")
    assert "the base weights of" in capsys.readouterr().out
    assert results_of(base).keys() == {"test"} and not (base / "adapter").exists()


def test_no_train_builds_and_reports_and_leaves_no_model(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("run", "--no-train")
    shown = capsys.readouterr().out
    for words in ("LlavaForConditionalGeneration", "Image 56 x 56 px", "Loaded vision_tower", "Parameters\n", "projector "):
        assert words in shown
    assert {path.name for path in run.iterdir()} == {"config.yaml", "log.txt", "run.json"}


def test_adapter_of_another_base_is_refused(start: Start, tmp_path: Path) -> None:
    from llava_folders import write_llava

    run = start("run", OPTIM__MAX_EPOCH=1)
    other = write_llava(tmp_path / "other", vision=(3, 32), llm=(2, 48), seed=5)
    with pytest.raises(SystemExit, match="base model: the adapter belongs to .*llava"):
        start("again", "--eval-only", "--model-dir", str(run), MODEL__BACKBONE__NAME=str(other))


def test_keys_of_testing_may_change_when_a_run_goes_on(start: Start) -> None:
    start("run", OPTIM__MAX_EPOCH=2)
    free = {"CACHE__MODE": "none", "GEN__MAX_NEW_TOKENS": 2, "VIS__EVERY": 5, "VIT_EVAL": "mask"}
    start("run", "--resume", "must", **{f"TRAINER__BGOBJLLAVA__{key}": value for key, value in free.items()})
    with pytest.raises(SystemExit, match="BGOBJLLAVA.AUG.P_FULL: stored 0.1, now 0.5"):
        start("run", "--resume", "must", TRAINER__BGOBJLLAVA__AUG__P_FULL=0.5)

"""A killed run of GatedBLIP2 goes on as if nothing had happened; one on another model or other data does not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import train_until
from other_styles import write_style
from safetensors.torch import load_file
from tiny_blip2s import write_blip2
from tiny_questions import TinyQuestions
from tiny_world import make_cfg

from trainers import adapters
from trainers.adapters import find_adapter, read_adapter
from trainers.run_folder import check_resume

NAME = "GatedBLIP2"
N_BATCHES = 4  # per epoch
SETTINGS = {
    "OPTIM.MAX_EPOCH": 4, "DATALOADER.TRAIN_X.BATCH_SIZE": 2, "TEST.FINAL_MODEL": "best_val",
    ".GRAD_ACCUM": 1, ".SAVE_LATEST_PER_EPOCH": 3, ".STYLE.DROPOUT": 0.3, ".ANSWER.TRAIN": "sample", ".EVAL.CONTROLS": (),
}  # fmt: skip
VALIDATIONS = (10.0, 50.0, 20.0, 30.0)  # accuracy after each epoch: the second is the best


def train(world: Path, folder: Path, *, kill_at: int = -1, settings: dict[str, Any] | None = None) -> tuple[Any, list[float]]:
    """See `train_until`; validations come to `VALIDATIONS`."""

    def answer(trainer: Any) -> None:
        trainer.test = lambda split=None: VALIDATIONS[trainer.epoch]

    settings = SETTINGS | (settings or {})
    return train_until(world, folder, NAME, settings, n_batches=N_BATCHES, kill_at=kill_at, prepare=answer)


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[float], Path]:
    """A run of four epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return *train(tiny_world, folder), folder


def read_record(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "adapter" / name / "adapter.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("kill_at", "settings"), [(8, {}), (11, {".CACHE.ENABLE": False})], ids=["after two epochs", "inside the third, uncached"]
)
def test_a_killed_run_goes_on_bit_by_bit(kill_at: int, settings: dict, whole, tiny_world: Path, tmp_path: Path) -> None:
    straight, losses, folder = whole
    run = tmp_path / "run"
    train(tiny_world, run, kill_at=kill_at)
    assert (run / "gated_blip2" / "latest.pth.tar").is_file() is (kill_at % N_BATCHES > 0)
    resumed, rest = train(tiny_world, run, settings=settings)
    assert rest == losses[kill_at:]
    assert resumed.best_result == straight.best_result == 50.0
    assert [each["losses"] for each in resumed.report.epochs] == [each["losses"] for each in straight.report.epochs]
    for name in ("best", "last"):
        stored, expected = (load_file(each / "adapter" / name / "adapter.safetensors") for each in (run, folder))
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[key], expected[key]) for key in stored)
    assert (read_record(run, "best")["epoch"], read_record(run, "last")["epoch"]) == (2, 4)
    assert read_record(run, "best")["scores"] == {"val": 50.0}


def test_every_file_is_read_without_pickle_and_none_holds_the_base(whole) -> None:
    straight, _, folder = whole
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    tensors = {name for name in files if name.endswith(".safetensors") or "pth.tar" in name}
    assert tensors == {
        "adapter/best/adapter.safetensors", "adapter/last/adapter.safetensors", "gated_blip2/model.pth.tar-4",
    }  # fmt: skip
    state = torch.load(files["gated_blip2/model.pth.tar-4"], weights_only=True)
    assert state["state_dict"].keys() == straight.system.parameters.keys()
    assert load_file(files["adapter/best/adapter.safetensors"]).keys() == straight.system.parameters.keys()


@pytest.mark.parametrize(
    ("keep", "folders"), [("best", {"best"}), ("last", {"last"}), ("all", {"epoch-1", "epoch-2", "best", "last"})]
)
def test_kept_adapters_follow_the_key(keep: str, folders: set[str], tiny_world: Path, tmp_path: Path) -> None:
    final = "last_step" if keep == "last" else "best_val"
    train(tiny_world, tmp_path / "run", settings={".CHECKPOINT.KEEP": keep, "TEST.FINAL_MODEL": final, "OPTIM.MAX_EPOCH": 2})
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir()} == folders
    assert len(list((tmp_path / "run" / "gated_blip2").glob("*pth.tar*"))) == (2 if keep == "all" else 1)


def test_another_base_style_or_data_is_refused_by_name(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_world, tmp_path / "run", kill_at=6)
    monkeypatch.setattr(TinyQuestions, "changes", {"question": "what style is it?"})
    changed = {
        "MODEL.BACKBONE.NAME": str(write_blip2(tmp_path / "other", seed=5)),
        ".STYLE.CHECKPOINT": write_style(tmp_path / "style"),
    }
    with pytest.raises(ValueError) as caught:
        train(tiny_world, tmp_path / "run", settings=changed)
    lines = str(caught.value).splitlines()
    assert lines[0] == "cannot continue the run, 3 thing(s) differ:"
    assert [line.strip().split(":")[0] for line in lines[1:]] == [
        "base model (MODEL.BACKBONE.NAME)", "data (DATASET.*)", "style encoder (STYLE.CHECKPOINT)",
    ]  # fmt: skip


def test_a_command_line_with_other_settings_is_refused_before_anything_is_built(tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_world, run, kill_at=2)
    (run / "config.yaml").write_text(make_cfg(tiny_world, run, NAME, SETTINGS).dump(), "utf-8")
    free = {".GEN.NUM_BEAMS": 2, ".EVAL.VAL_LIMIT": 1, ".CACHE.ENABLE": False}
    check_resume(make_cfg(tiny_world, run, NAME, SETTINGS | free), "must")
    changed = SETTINGS | {".PRESET": "gates", ".GATE.PHI": "film", "MODEL.BACKBONE.NAME": "elsewhere"}
    with pytest.raises(ValueError) as caught:
        check_resume(make_cfg(tiny_world, run, NAME, changed), "auto")
    for key in ("TRAINER.GATEDBLIP2.PRESET", "TRAINER.GATEDBLIP2.GATE.PHI", "MODEL.BACKBONE.NAME"):
        assert f"{key}: stored " in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
@pytest.mark.parametrize(
    ("victim", "nth", "kept"), [("adapter.safetensors", 3, 1), ("model.pth.tar", 2, 2)], ids=["adapter", "checkpoint"]
)
def test_a_kill_while_a_file_is_written_loses_nothing(
    victim: str, nth: int, kept: int, whole, tiny_world: Path, tmp_path: Path
) -> None:
    run, (straight, losses, folder) = tmp_path / "run", whole
    assert kill_at_write(tiny_world, run, victim, nth) == -signal.SIGKILL
    assert read_adapter(find_adapter(run), needs_tokenizer=False).record["epoch"] == kept
    resumed, rest = train(tiny_world, run)
    assert rest == losses[len(losses) - len(rest) :]
    assert 0 < len(rest) < len(losses)
    expected, stored = (load_file(each / "adapter" / "best" / "adapter.safetensors") for each in (folder, run))
    assert all(torch.equal(stored[key], expected[key]) for key in expected)
    assert resumed.best_result == straight.best_result
    assert [path.name for path in run.rglob("*") if path.name.endswith((".part", ".tmp"))] == []


def kill_at_write(world: Path, run: Path, victim: str, nth: int) -> int:
    """Train in a process that dies when half of the nth file of a name is written; return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    written: list[Path] = []

    def die_in(save: Callable[..., None]) -> Callable[..., None]:
        def save_or_die(content: Any, target: Any, *arguments: Any, **options: Any) -> None:
            path = target if isinstance(target, Path) else Path(target.name)
            if victim in path.name:
                written.append(path)
                if len(written) == nth:
                    path.write_bytes(b"half a file")
                    os.kill(os.getpid(), signal.SIGKILL)
            save(content, target, *arguments, **options)

        return save_or_die

    try:
        adapters.save_file, torch.save = die_in(adapters.save_file), die_in(torch.save)
        train(world, run)
    finally:
        os._exit(1)

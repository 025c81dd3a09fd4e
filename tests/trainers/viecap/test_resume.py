"""A ViECap run killed inside an epoch goes on as if nothing had happened; one with other data, seed or model is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dassl
import pytest
import torch
from killed_runs import train_until

NAME = "ViECap"
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "OPTIM.MAX_EPOCH": 3, "TEST.FINAL_MODEL": "best_val", ".SAVE_LATEST_PER_EPOCH": 3, ".WARMUP_STEPS": 2, ".LOG_PER_EPOCH": 1,
    "TRAIN.PRINT_FREQ": 1,
}  # fmt: skip
N_BATCHES = 4  # per epoch


def train(world: Path, folder: Path, *, kill_at: int = -1, settings: dict[str, Any] | None = None) -> tuple[Any, list[float]]:
    """See `train_until`."""
    return train_until(world, folder, NAME, SETTINGS | (settings or {}), n_batches=N_BATCHES, kill_at=kill_at)


Train = Callable[..., tuple[Any, list[float]]]


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[float], Path]:
    """A run of three epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return *train(tiny_world, folder), folder


def scores_of(folder: Path) -> list[float]:
    return [entry["scores"]["CIDEr"] for entry in json.loads((folder / "viecap.json").read_text("utf-8"))["epochs"]]


@pytest.mark.parametrize(("kill_at", "first"), [(2, 2), (6, 6), (8, 8)])
def test_a_killed_run_goes_on_bit_by_bit(kill_at: int, first: int, whole, tiny_world: Path, tmp_path: Path) -> None:
    straight, losses, folder = whole
    train(tiny_world, tmp_path / "run", kill_at=kill_at)
    latest = tmp_path / "run" / "viecap" / "latest.pth.tar"
    assert latest.is_file() is (kill_at % N_BATCHES > 0)
    resumed, rest = train(tiny_world, tmp_path / "run")
    assert rest == losses[first:]
    for name, value in straight.adapt.state_dict().items():
        assert torch.equal(value, resumed.adapt.state_dict()[name]), name
    assert resumed.best_result == straight.best_result and scores_of(tmp_path / "run") == scores_of(folder)
    assert not latest.exists()


def test_the_mean_loss_of_an_interrupted_stretch_is_over_all_of_it(whole, tiny_world: Path, tmp_path: Path, caplog) -> None:
    train(tiny_world, tmp_path / "run", kill_at=6)
    with caplog.at_level("INFO"):
        train(tiny_world, tmp_path / "run")
    weighted = [line for line in caplog.text.splitlines() if "epoch 2, batch 4 of 4: mean loss" in line]
    found = float(weighted[0].split("mean loss ")[1].split(",")[0])
    assert min(whole[1][4:8]) < found < max(whole[1][4:8])
    later = [line for line in caplog.text.splitlines() if "epoch 3, batch 4 of 4: mean loss" in line]
    assert len(weighted) == len(later) == 1


def test_another_run_is_not_continued_and_every_difference_is_named(tiny_world: Path, tmp_path: Path) -> None:
    train(tiny_world, tmp_path / "run", kill_at=2)
    changed = {"SEED": 7, "DATALOADER.TRAIN_X.BATCH_SIZE": 2, ".DATA_LIMIT": 15, ".SOFT_PROMPT_FIRST": False, ".STOP": "eos"}
    copied = shutil.copytree(tiny_world / "gpt2", tmp_path / "gpt2")
    with pytest.raises(ValueError) as caught:
        train(tiny_world, tmp_path / "run", settings=changed | {".LANGUAGE_MODEL": str(copied)})
    text = str(caught.value)
    words = ("caption store", "SEED: the run has 1, now 7", "BATCH_SIZE: the run has 4, now 2", "language model", "STOP",
             "SOFT_PROMPT_FIRST", "LANGUAGE_MODEL")  # fmt: skip
    assert f"cannot continue the run, {len(words)} thing(s) differ" in text
    assert [word for word in words if word not in text] == []


def test_a_resumed_run_may_decode_and_export_otherwise(tiny_world: Path, tmp_path: Path, whole) -> None:
    train(tiny_world, tmp_path / "run", kill_at=6)
    other = {".DECODE": "beam", ".TOP_K": 1, ".LOG_PER_EPOCH": 0, ".SAVE_LATEST_PER_EPOCH": 0}
    assert train(tiny_world, tmp_path / "run", settings=other)[1] == whole[1][6:]


def test_another_hash_seed_and_process_gives_the_same_losses(whole, tiny_world: Path, tmp_path: Path) -> None:
    engine = str(Path(dassl.__file__).parents[1])
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "trainers"), engine]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "5"}
    env["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    words = [sys.executable, __file__, str(tiny_world), str(tmp_path / "run"), str(tmp_path / "losses.json")]
    subprocess.run(words, env=env, check=True, capture_output=True, timeout=240, cwd=tmp_path)
    assert json.loads((tmp_path / "losses.json").read_text("utf-8")) == whole[1][:N_BATCHES]


if __name__ == "__main__":
    _, world, run, output = sys.argv
    untested = {"TEST.NO_TEST": True, "TEST.FINAL_MODEL": "last_step"}
    _, short = train(Path(world), Path(run), kill_at=N_BATCHES, settings=untested)
    Path(output).write_text(json.dumps(short), encoding="utf-8")

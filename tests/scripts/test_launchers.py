"""The launchers start what they name, hand on Python's exit code, and agree with each other on both systems."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
LAUNCHERS = ("LaFTer", "LaFTer_HybridCascade", "zero_shot")
BASH = shutil.which("bash")


def start(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "PYTHON": sys.executable, **environment}
    command = [BASH, str(SCRIPTS / f"{name}.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd="/")


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_a_launcher_trains_and_tests(tmp_path):
    words = ("handwritten_digits", "tiny12", "OPTIM.MAX_EPOCH", "1", "TRAINER.HYBRIDCASCADELAFTER.WARMUP_EPOCHS", "0")
    done = start("LaFTer_HybridCascade", *words, "OUTPUT_DIR", str(tmp_path / "run"), DATA=str(tmp_path / "data"), SEED="3")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Loading trainer: HybridCascadeLaFTer" in done.stdout and "Setting fixed seed: 3" in done.stdout
    assert (tmp_path / "run" / "adapt" / "model.pth.tar-1").is_file()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_an_unknown_data_set_fails_and_is_named(name, tmp_path):
    done = start(name, "no_such_data", "tiny12", "OUTPUT_DIR", str(tmp_path))
    assert done.returncode != 0 and "configs/datasets/no_such_data.yaml" in done.stderr


def launched_files() -> list[Path]:
    return [SCRIPTS / f"{name}{ending}" for name in ("launch", *LAUNCHERS) for ending in (".sh", ".bat")]


@pytest.mark.parametrize("script", launched_files(), ids=lambda path: path.name)
def test_every_flag_of_a_launcher_is_a_flag_of_train(script):
    known = {flag for action in train.build_parser()._actions for flag in action.option_strings}
    used = set(re.findall(r"(?<!\S)--[a-z-]+", script.read_text("utf-8")))
    assert used <= known


@pytest.mark.parametrize("ending", (".sh", ".bat"))
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_names_a_trainer_and_a_config_folder_that_exist(name, ending):
    import datasets  # noqa: F401  (finds the engine)
    from dassl.engine import TRAINER_REGISTRY

    import trainers  # noqa: F401

    text = (SCRIPTS / f"{name}{ending}").read_text("utf-8")
    trainer, folder = re.search(r'^(?:launch|call "%~dp0launch\.bat") (\w+) (\w+)', text, re.M).groups()
    assert trainer in TRAINER_REGISTRY.registered_names()
    assert (ROOT / "configs" / "trainers" / folder / "tiny12.yaml").is_file()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.bat")), ids=lambda path: path.name)
def test_a_batch_file_has_a_twin_calls_files_that_exist_and_never_pauses(script):
    assert script.with_suffix(".sh").is_file()
    text = script.read_text("utf-8")
    for called in re.findall(r'"?%~dp0([\w.]+)"?', text):
        assert called in ("..", "..") or (SCRIPTS / called).is_file()
    for called in re.findall(r"%ROOT%\\([\w\\.]+\.py)", text):
        assert (ROOT / called.replace("\\", "/")).is_file()
    assert "pause" not in text.lower() and "CUDA_VISIBLE_DEVICES" not in text
    assert "exit /b %ERRORLEVEL%" in text


def test_defaults_of_both_systems_agree():
    shell, batch = ((SCRIPTS / f"launch{ending}").read_text("utf-8") for ending in (".sh", ".bat"))
    for default in ("handwritten_digits", "tiny12"):
        assert default in shell and default in batch
    paths = [re.findall(r"(?:configs|output)/[^\"\s]+", re.sub(r"[%${}]", "", text)) for text in (shell, batch)]
    assert [path.lower() for path in paths[0]] == [path.lower() for path in paths[1]]

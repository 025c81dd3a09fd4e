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
LAUNCHERS = ("LaFTer", "LaFTer_HybridCascade", "LaFTer_MultiPrompt", "LaFTer_DualTask", "LaFTer_DirectDualTask", "zero_shot")
CALL = re.compile(r'^(?:launch|call "%~dp0launch\.bat") (\w+) (\w+) (\w+) "([^"]*)" (?:"\$@"|%\*)$', re.M)
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
@pytest.mark.parametrize("name", ["LaFTer", "LaFTer_DualTask"])
def test_an_unknown_data_set_fails_and_is_named(name, tmp_path):
    done = start(name, "no_such_data", "tiny12", "OUTPUT_DIR", str(tmp_path))
    assert done.returncode != 0 and "configs/datasets/no_such_data.yaml" in done.stderr


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_defaults_settings_and_places_reach_the_command_line(tmp_path):
    """An interpreter that only shows its arguments stands in for Python; the checkout is a copy without .venv."""
    shutil.copytree(SCRIPTS, tmp_path / "a clone" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    script = tmp_path / "a clone" / "scripts" / "LaFTer_DualTask.sh"
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(fake), "DATA": "my data"}
    shown = [
        subprocess.run([script, *words], capture_output=True, text=True, env=environment, check=True).stdout.splitlines()
        for words in ([], ["fi", "tiny12", "OPTIM.LR", "1e-4"])
    ]
    assert shown[0][:13] == [
        "train.py", "--trainer", "LaFTer", "--dataset-config-file", "configs/datasets/emotion6.yaml",
        "--config-file", "configs/trainers/lafter/vit_b32.yaml", "--root", "my data",
        "--output-dir", "output/emotion6/LaFTer_DualTask/vit_b32/seed1", "--seed", "1",
    ]  # fmt: skip
    assert "configs/datasets/fi.yaml" in shown[1] and "configs/trainers/lafter/tiny12.yaml" in shown[1]
    # The launcher's own settings stand before the user's, which therefore win.
    assert shown[1][13:] == [*shown[0][13:], "OPTIM.LR", "1e-4"]


# Launchers of language systems: (trainer, config folder, data set and recipe without words).
LANGUAGE_LAUNCHERS = {
    "bgobj_llava": ("BgObjLLaVA", "bgobj_llava", "mini_scenes", "tiny"),
    "gated_blip2_artquest": ("GatedBLIP2", "gated_blip2", "artquest", "artquest"),
}


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("name", "words", "data", "recipe"),
    [
        *((name, [], data, recipe) for name, (_, _, data, recipe) in LANGUAGE_LAUNCHERS.items()),
        ("bgobj_llava", ["llava15_7b_lora", "OPTIM.LR", "1e-4"], "ocr_vqa", "llava15_7b_lora"),
        ("gated_blip2_artquest", ["tiny", "OPTIM.LR", "1e-4"], "mini_scenes", "tiny"),
    ],
)
def test_a_language_systems_launcher_takes_a_recipe_first(name, words, data, recipe, tmp_path):
    trainer, folder, _, _ = LANGUAGE_LAUNCHERS[name]
    shutil.copytree(SCRIPTS, tmp_path / "clone" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(fake)} | ({"DATASET": data} if words else {})
    script = tmp_path / "clone" / "scripts" / f"{name}.sh"
    done = subprocess.run([script, *words], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == [
        "train.py", "--trainer", trainer, "--dataset-config-file", f"configs/datasets/{data}.yaml",
        "--config-file", f"configs/trainers/{folder}/{recipe}.yaml", "--root", "data",
        "--output-dir", f"output/{data}/{trainer}/{recipe}/seed1", "--seed", "1", *words[1:],
    ]  # fmt: skip
    assert (ROOT / "configs" / "datasets" / f"{data}.yaml").is_file()
    assert (ROOT / "configs" / "trainers" / folder / f"{recipe}.yaml").is_file()


@pytest.mark.parametrize("name", LANGUAGE_LAUNCHERS)
def test_both_files_of_a_language_systems_launcher_agree(name):
    trainer, folder, data, recipe = LANGUAGE_LAUNCHERS[name]
    shell, batch = ((SCRIPTS / f"{name}{ending}").read_text("utf-8") for ending in (".sh", ".bat"))
    for words in (f'{trainer} {folder} {trainer} ""', data, recipe):
        assert words in shell and words in batch


def launched_files() -> list[Path]:
    names = ("launch", *LAUNCHERS, *LANGUAGE_LAUNCHERS)
    return [SCRIPTS / f"{name}{ending}" for name in names for ending in (".sh", ".bat")]


@pytest.mark.parametrize("script", launched_files(), ids=lambda path: path.name)
def test_every_flag_of_a_launcher_is_a_flag_of_train(script):
    known = {flag for action in train.build_parser()._actions for flag in action.option_strings}
    used = set(re.findall(r"(?<!\S)--[a-z-]+", script.read_text("utf-8")))
    assert used <= known


def call_of(name: str, ending: str = ".sh") -> tuple[str, ...]:
    """(trainer, config folder, run name, settings) of a launcher."""
    (call,) = CALL.findall((SCRIPTS / f"{name}{ending}").read_text("utf-8"))
    return call


@pytest.mark.parametrize("name", LAUNCHERS)
def test_both_files_of_a_launcher_call_the_same(name):
    assert call_of(name, ".sh") == call_of(name, ".bat")


def test_no_two_launchers_share_a_run_folder():
    assert len({call_of(name)[2] for name in LAUNCHERS}) == len(LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("config", ("vit_b32", "tiny12"))
def test_a_launchers_trainer_files_and_settings_are_accepted(name, config):
    import datasets  # noqa: F401  (finds the engine)
    from dassl.engine import TRAINER_REGISTRY

    from trainers import runs

    trainer, folder, _, settings = call_of(name)
    words = ["--trainer", trainer, "--config-file", str(ROOT / "configs" / "trainers" / folder / f"{config}.yaml")]
    words += ["--dataset-config-file", str(ROOT / "configs" / "datasets" / "emotion6.yaml")]
    cfg = runs.build_cfg(train.parse_args([*words, *settings.split(), "USE_CUDA", "false"]))
    runs.check_names(cfg)
    trainer_class = TRAINER_REGISTRY.get(trainer)
    trainer_class.check_cfg(object.__new__(trainer_class), cfg)


def test_the_dual_task_launchers_set_what_their_names_say():
    dual, direct = (dict(zip(*[iter(call_of(name)[3].split())] * 2)) for name in ("LaFTer_DualTask", "LaFTer_DirectDualTask"))
    assert dual["TRAINER.LAFTER.MODE"] == "supervised" and dual["TRAINER.LAFTER.DUAL.ENABLED"] == "True"
    assert direct["TRAINER.LAFTER.MODE"] == "direct" and direct["TRAINER.LAFTER.DUAL.TEMPERATURE"] == "12.0"
    assert call_of("LaFTer")[3] == ""


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.bat")), ids=lambda path: path.name)
def test_a_batch_file_has_a_twin_calls_files_that_exist_and_never_pauses(script):
    assert script.with_suffix(".sh").is_file()
    text = script.read_text("utf-8")
    for called in re.findall(r'"?%~dp0([\w.]+)"?', text):
        assert called == ".." or (SCRIPTS / called).is_file()
    for called in re.findall(r"%ROOT%\\([\w\\.]+\.py)", text):
        assert (ROOT / called.replace("\\", "/")).is_file()
    assert "pause" not in text.lower() and "CUDA_VISIBLE_DEVICES" not in text
    assert "exit /b %ERRORLEVEL%" in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_with_an_interpreter_line_can_be_run_as_a_program(script):
    assert os.access(script, os.X_OK) == script.read_text("utf-8").startswith("#!")


def test_defaults_of_both_systems_agree():
    shell, batch = ((SCRIPTS / f"launch{ending}").read_text("utf-8") for ending in (".sh", ".bat"))
    for default in ("emotion6", "vit_b32"):
        assert default in shell and default in batch
    paths = [re.findall(r"(?:configs|output)/[^\"\s]+", re.sub(r"[%${}]", "", text)) for text in (shell, batch)]
    assert [path.lower() for path in paths[0]] == [path.lower() for path in paths[1]]

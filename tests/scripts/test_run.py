"""scripts/run: places, flags, what is skipped and what is continued."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import train

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/run.py; train.py is only noted down in `calls` and leaves the record of a finished run."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "scripts" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls, module.code = [], 0
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    monkeypatch.setenv("DATA", "somewhere")

    def note(command: list[str], cwd: Path) -> SimpleNamespace:
        assert cwd == ROOT and command[:2] == [sys.executable, "train.py"]
        args = train.parse_args(command[2:])
        module.calls.append(args)
        if not module.code:
            write_record(Path(args.output_dir), "finished")
        return SimpleNamespace(returncode=module.code)

    monkeypatch.setattr(module.subprocess, "run", note)
    return module


def write_record(folder: Path, status: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"status": status}))


def place(args, root: Path) -> str:
    return Path(args.output_dir).relative_to(root).as_posix()


def test_a_run_has_its_place_its_files_and_its_flags(runner, tmp_path):
    runner.main("handwritten_digits HybridCascadeLaFTer tiny12 3 OPTIM.LR 1e-4".split())
    (args,) = runner.calls
    assert place(args, tmp_path) == "handwritten_digits/HybridCascadeLaFTer/tiny12/seed3"
    assert args.dataset_config_file == "configs/datasets/handwritten_digits.yaml"
    assert args.config_file == "configs/trainers/hybrid_cascade_lafter/tiny12.yaml"
    assert (args.trainer, args.seed, args.root, args.resume) == ("HybridCascadeLaFTer", 3, "somewhere", None)
    assert args.opts == ["OPTIM.LR", "1e-4"]


def test_shots_are_in_the_name_and_in_the_settings(runner, tmp_path):
    runner.main("eurosat ZeroshotCLIP vit_b16 2 16".split())
    (args,) = runner.calls
    assert place(args, tmp_path) == "eurosat/ZeroshotCLIP/vit_b16_16shots/seed2"
    assert args.opts == ["DATASET.NUM_SHOTS", "16"]


def test_base_to_new_trains_on_base_and_tests_that_model_on_new(runner, tmp_path):
    folder = tmp_path / "base2new" / "train_base" / "eurosat" / "shots_4" / "LaFTer" / "vit_b32" / "seed1" / "adapt"
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_text("model.pth.tar-50\n")
    runner.main("eurosat LaFTer vit_b32 1 4 base2new OPTIM.LR 1e-4".split())
    base, new = runner.calls
    assert place(base, tmp_path) == "base2new/train_base/eurosat/shots_4/LaFTer/vit_b32/seed1" and not base.eval_only
    assert place(new, tmp_path) == "base2new/test_new/eurosat/shots_4/LaFTer/vit_b32/seed1" and new.eval_only
    assert base.opts == "DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES base OPTIM.LR 1e-4".split()
    assert new.opts == "DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES new OPTIM.LR 1e-4".split()
    assert (new.model_dir, new.load_epoch) == (base.output_dir, 50)


def test_the_model_that_validation_chose_is_loaded_by_its_own_name(runner, tmp_path):
    folder = tmp_path / "run" / "adapt"
    folder.mkdir(parents=True)
    for name, text in (("checkpoint", "model.pth.tar-50\n"), ("model-best.pth.tar", "")):
        (folder / name).write_text(text)
    assert runner.model_flags(tmp_path / "run") == ["--model-dir", str(tmp_path / "run")]
    assert runner.model_flags(tmp_path / "elsewhere") == []


def test_only_a_finished_run_is_skipped(runner, tmp_path, capsys):
    words = "handwritten_digits ZeroshotCLIP tiny12 1".split()
    folder = tmp_path / "handwritten_digits" / "ZeroshotCLIP" / "tiny12" / "seed1"
    for status in ("running", "failed"):
        write_record(folder, status)
        runner.main(words)
    assert len(runner.calls) == 2 and capsys.readouterr().out == ""
    runner.main(words)
    assert len(runner.calls) == 2 and "Finished already, skipped" in capsys.readouterr().out


def test_a_failure_is_handed_on_and_ends_base_to_new(runner):
    runner.code = 7
    with pytest.raises(SystemExit) as stop:
        runner.main("eurosat ZeroshotCLIP vit_b16 1 4 base2new".split())
    assert stop.value.code == 7 and len(runner.calls) == 1


def test_an_unknown_trainer_is_named_with_the_known_folders(runner):
    with pytest.raises(SystemExit, match="no settings for trainer Lafta in configs/trainers; there are .*zeroshot_clip"):
        runner.main("eurosat Lafta vit_b16 1".split())


@pytest.mark.parametrize("words", ["a b c", "a b c one", "a b c 1 base2new", "a b c 1 16 KEY", "a b c 1 KEY"])
def test_malformed_command_lines_end_with_a_message(words, runner):
    with pytest.raises(SystemExit) as stop:
        runner.main(words.split())
    assert stop.value.code == 2 and runner.calls == []


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_the_shell_script_runs_the_baseline_once(tmp_path):
    settings = {**os.environ, "PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "OUTPUT": str(tmp_path / "out")}
    command = [ROOT / "scripts" / "run.sh", *"handwritten_digits ZeroshotCLIP tiny12 1".split()]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd="/")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = tmp_path / "out" / "handwritten_digits" / "ZeroshotCLIP" / "tiny12" / "seed1" / "run.json"
    assert json.loads(record.read_text())["status"] == "finished"
    again = subprocess.run(command, capture_output=True, text=True, env=settings, cwd="/", check=True)
    assert again.stdout.startswith("Finished already, skipped")

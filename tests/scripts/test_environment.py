"""The launchers' environment: installed once, again when the requirements change, and from a path with spaces."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="needs bash")


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/install.py on a checkout and an environment of its own; pip is only noted down, in `calls`."""
    spec = importlib.util.spec_from_file_location("installer_under_test", SCRIPTS / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "setup.py").write_text("requirements, first version")
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    module.calls, module.code = [], 0

    def note(command: list[str], cwd: Path) -> SimpleNamespace:
        module.calls.append((command[-1], cwd))
        return SimpleNamespace(returncode=module.code)

    monkeypatch.setattr(module.subprocess, "run", note)
    return module


def test_install_runs_pip_once_and_again_when_something_changed(installer: ModuleType, tmp_path: Path) -> None:
    assert [installer.install("all"), installer.install("all")] == [0, 0]
    assert installer.calls == [(".[all]", tmp_path)]
    (tmp_path / "setup.py").write_text("requirements, second version")
    installer.install("all")
    installer.install("dev")
    assert [call[0] for call in installer.calls] == [".[all]", ".[all]", ".[dev]"]


def test_install_that_failed_is_tried_again(installer: ModuleType) -> None:
    installer.code = 1
    assert installer.install("all") == 1
    installer.code = 0
    assert installer.install("all") == 0
    assert len(installer.calls) == 2


@needs_bash
@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)


@needs_bash
def test_environment_is_made_beside_scripts_from_any_folder_with_the_chosen_interpreter(tmp_path: Path) -> None:
    checkout = tmp_path / "a clone"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "env.sh", checkout / "scripts")
    (checkout / "scripts" / "install.py").write_text("import sys; print('installing', sys.argv[1], sys.prefix)")
    (checkout / "setup.py").touch()
    command = f'source "{checkout}/scripts/env.sh"; prepare_env dev && echo "$ROOT|$VENV_PYTHON"'
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [
        f"installing dev {checkout}/.venv",
        f"{checkout}|{checkout}/.venv/bin/python",
    ], done.stderr


@needs_bash
def test_an_old_interpreter_is_refused_with_a_hint(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "env.sh", tmp_path / "scripts")
    done = subprocess.run(
        ["bash", "-c", f'source "{tmp_path}/scripts/env.sh"; prepare_env'],
        env={"PYTHON": str(old), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "python3.8" in done.stderr and "3.10 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()

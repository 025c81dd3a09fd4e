"""Which `dassl` is used, what its import does to the process, and how a foreign script is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SHOW_ENGINE = "import dassl_host, json; e = dassl_host.ensure_dassl(); print(json.dumps([e.side, e.version, e.path]))"

# The traits of upstream that matter here: imports of optional packages, and logging switched off.
FAKE_ENGINE = """
import logging
logging.disable(logging.WARNING)
import pandas as pd
from wilds import get_dataset
"""


@pytest.fixture
def fake_upstream(tmp_path: Path) -> Path:
    """Return a folder with a package that looks like upstream Dassl."""
    engine = tmp_path / "upstream" / "dassl" / "engine"
    engine.mkdir(parents=True)
    (engine.parent / "__init__.py").write_text('__version__ = "0.6.3"\n')
    (engine / "__init__.py").write_text(FAKE_ENGINE)
    return tmp_path / "upstream"


def run_with_paths(
    choice: str | None, *arguments: str, paths: tuple[Path, ...] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    # -S hides what is installed, an upstream Dassl in particular: the choice itself needs the standard library only.
    env = {key: value for key, value in os.environ.items() if key not in ("DASSL_HOST", "PYTHONPATH")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, *paths)))
    if choice is not None:
        env["DASSL_HOST"] = choice
    return subprocess.run([sys.executable, "-S", *arguments], env=env, cwd=cwd, capture_output=True, text=True)


def test_auto_without_upstream_yields_bundled(tmp_path):
    side, version, path = json.loads(run_with_paths(None, "-c", SHOW_ENGINE, cwd=tmp_path).stdout)
    assert (side, version) == ("bundled", "0.6.3")
    assert Path(path) == ROOT / "dassl_host" / "dassl"


def test_auto_with_upstream_keeps_upstream(fake_upstream):
    side, _, path = json.loads(run_with_paths("auto", "-c", SHOW_ENGINE, paths=(fake_upstream,)).stdout)
    assert side == "upstream" and Path(path) == fake_upstream / "dassl"


def test_bundled_wins_over_findable_upstream(fake_upstream):
    code = f"{SHOW_ENGINE}; assert dassl_host.ensure_dassl() == e"
    assert json.loads(run_with_paths("bundled", "-c", code, paths=(fake_upstream,)).stdout)[0] == "bundled"


def test_upstream_missing_raises_import_error_with_hint(tmp_path):
    # The bundled engine on the path is not upstream.
    done = run_with_paths("upstream", "-c", SHOW_ENGINE, paths=(ROOT / "dassl_host",), cwd=tmp_path)
    assert "ImportError: DASSL_HOST=upstream" in done.stderr
    assert "pip install -e . --no-build-isolation" in done.stderr and "PYTHONPATH" in done.stderr


def test_unknown_choice_raises_value_error_listing_three():
    done = run_with_paths("bundle", "-c", SHOW_ENGINE)
    assert "ValueError: DASSL_HOST is 'bundle'; expected one of auto, bundled, upstream" in done.stderr


@pytest.mark.parametrize("choice", ["bundled", "upstream"])
def test_wrong_side_already_imported_raises_naming_its_file(choice, fake_upstream):
    other = fake_upstream if choice == "bundled" else ROOT / "dassl_host"
    done = run_with_paths(choice, "-c", f"import dassl; {SHOW_ENGINE}", paths=(other,))
    assert f"RuntimeError: DASSL_HOST={choice}" in done.stderr and str(other / "dassl") in done.stderr


def test_upstream_guards_restore_logging_and_stand_in_for_missing_packages(fake_upstream):
    code = f"""
{SHOW_ENGINE}
import logging, sys
from dassl.engine import get_dataset
print(logging.root.manager.disable, "wilds" in sys.modules, "pandas" in sys.modules)
get_dataset("iwildcam")
"""
    done = run_with_paths("upstream", "-c", code, paths=(fake_upstream,))
    assert done.stdout.splitlines()[-1] == "0 False False"
    assert "ImportError: wilds.get_dataset is used here; pip install wilds" in done.stderr


def test_bare_folder_named_dassl_is_not_upstream(tmp_path):
    (tmp_path / "dassl").mkdir()
    assert json.loads(run_with_paths("auto", "-c", SHOW_ENGINE, paths=(tmp_path,)).stdout)[0] == "bundled"


def test_importing_engine_under_another_name_raises():
    done = run_with_paths("bundled", "-c", "import dassl_host.dassl")
    assert "ImportError: import this package as `dassl`, not as `dassl_host.dassl`" in done.stderr


def test_dassl_folder_alone_on_path_finds_its_host(tmp_path):
    env = {"PYTHONPATH": str(ROOT / "dassl_host"), "DASSL_HOST": "auto"}
    code = "import dassl.utils, dassl_host; print(dassl_host.ensure_dassl().side)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().strip() == "bundled", done.stderr


def test_module_without_script_prints_folder_of_engine(tmp_path):
    done = run_with_paths("bundled", "-m", "dassl_host", cwd=tmp_path)
    assert Path(done.stdout.strip()) == ROOT / "dassl_host"


def test_foreign_script_runs_with_its_own_packages_and_arguments(tmp_path):
    for package in ("trainers", "clip"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("from dassl.config import get_cfg_default\nOWN = True\n")
    (tmp_path / "train.py").write_text(
        "import sys, clip, trainers\nassert __name__ == '__main__'\nprint(trainers.OWN, clip.OWN, sys.argv, sys.path[0])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DASSL_HOST": "auto"}
    command = [sys.executable, "-m", "dassl_host", "train.py", "--root", "data"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == f"True True ['train.py', '--root', 'data'] {tmp_path}", done.stderr


def test_missing_script_exits_with_its_name(tmp_path):
    done = run_with_paths("bundled", "-m", "dassl_host", "nowhere.py", cwd=tmp_path)
    assert done.returncode != 0 and "no script at nowhere.py" in done.stderr

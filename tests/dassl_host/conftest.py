"""Engine for the tests of this folder, the toy world they share, and processes with either engine."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dassl_host import ensure_dassl

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("bundled", "upstream")

# The helpers beside this file are also run as commands, in processes with another engine.
sys.path.append(str(Path(__file__).parent))
ensure_dassl()


@pytest.fixture(autouse=True)
def _needs_bundled_in_process(request: pytest.FixtureRequest) -> None:
    """Skip what tests the bundled engine in this process if another engine is installed and kept here."""
    if ensure_dassl().side == "upstream" and "run_on" not in request.fixturenames:
        pytest.skip("this process holds upstream Dassl; DASSL_HOST=bundled tests the bundled engine")


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    """Folder with the images of the toy data set."""
    from toy_world import write_images

    return write_images(tmp_path_factory.mktemp("toy_images"))


@pytest.fixture
def make_toy_cfg(toy_root, tmp_path):
    """Return a function (trainer, **{"DOTTED.KEY": value}) -> cfg of a short run in `tmp_path`/run."""
    from toy_world import make_cfg

    def make(trainer: str = "NoisyToy", **overrides):
        return make_cfg(toy_root, tmp_path / "run", trainer, overrides)

    return make


def run_python(side: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a side forced; DASSL_UPSTREAM may name a checkout of upstream Dassl."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    if side == "upstream" and os.environ.get("DASSL_UPSTREAM"):
        paths.append(os.environ["DASSL_UPSTREAM"])
    env = {**os.environ, "DASSL_HOST": side, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=600)


@functools.cache
def upstream_is_absent() -> bool:
    """Return True if upstream Dassl cannot be found (asked once, in a process of its own)."""
    return run_python("upstream", "-c", "import dassl_host; dassl_host.ensure_dassl()").returncode != 0


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; upstream is skipped where it is absent."""
    if request.param == "upstream" and upstream_is_absent():
        pytest.skip("no upstream Dassl: install it or set DASSL_UPSTREAM to a checkout")
    return request.param


@pytest.fixture
def run_on() -> Callable[..., str]:
    """Return `run(side, code_or_script, *arguments) -> stdout`: a fresh process, since one can hold only one engine.

    A string is code, a path is a script; both find `dassl` ensured. A process that fails, fails the test.
    """

    def run(side: str, source: str | Path, *arguments: object) -> str:
        ensured = f"import dassl_host; dassl_host.ensure_dassl()\n{source}"
        start = ["-m", "dassl_host", str(source)] if isinstance(source, Path) else ["-c", ensured]
        done = run_python(side, *start, *map(str, arguments))
        assert done.returncode == 0, f"{side} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run

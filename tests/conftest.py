"""The engine, and the tiny world that most tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dassl_host import ensure_dassl

# The helpers beside the tests are imported by name.
sys.path += [str(Path(__file__).parent / folder) for folder in (".", "trainers", "datasets")]
ensure_dassl()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random tiny CLIP, eight training images and class texts."""
    from tiny_world import write_world

    return write_world(tmp_path_factory.mktemp("tiny_world"))


@pytest.fixture
def make_trainer(tiny_world: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return `make(name, overrides, run="run") -> trainer`, built in a run folder below the test's own."""
    from tiny_world import build, make_cfg

    def make(name: str = "LaFTer", overrides: dict[str, Any] | None = None, *, run: str = "run") -> Any:
        return build(make_cfg(tiny_world, tmp_path / run, name, overrides))

    return make

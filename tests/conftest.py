"""The engine, and the tiny world that most tests share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dassl_host import ensure_dassl

# The helpers beside the tests are imported by name; command lines import those beside them.
FOLDERS = (".", "trainers", "trainers/bgobj_llava", "trainers/viecap", "trainers/gated_blip2", "datasets", "../scripts")
sys.path += [str((Path(__file__).parent / folder).resolve()) for folder in FOLDERS]
ensure_dassl()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with a random tiny CLIP, eight training images and class texts; what ViECap keeps for later goes beside it."""
    from tiny_world import write_world

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.viecap.prepare.CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield write_world(tmp_path_factory.mktemp("tiny_world"))


@pytest.fixture
def make_trainer(tiny_world: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return `make(name, overrides, run="run") -> trainer`, built in a run folder below the test's own."""
    from tiny_world import build, make_cfg

    def make(name: str = "LaFTer", overrides: dict[str, Any] | None = None, *, run: str = "run") -> Any:
        return build(make_cfg(tiny_world, tmp_path / run, name, overrides))

    return make


@pytest.fixture(scope="session")
def trained_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Return `trained_run(name) -> (run folder, trainer)`; each is trained once, for one epoch, and must not be changed."""
    from tiny_world import train_run

    runs: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in runs:
            folder = tmp_path_factory.mktemp("trained") / name
            runs[name] = folder, train_run(tiny_world, folder, name)
        return runs[name]

    return get


@pytest.fixture
def copied_run(trained_run: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of a LaFTer run that a test may spoil."""
    return Path(shutil.copytree(trained_run("LaFTer")[0], tmp_path / "copied_run"))


@pytest.fixture
def photos(tiny_world: Path, tmp_path: Path) -> Path:
    """Folder with three pictures at different depths (one in grey, one with alpha), a text and hidden files."""
    folder = tmp_path / "photos"
    (folder / "Zürich ☃" / "deep").mkdir(parents=True)
    source = tiny_world / "colours" / "test"
    shutil.copy(source / "0.png", folder / "b.PNG")
    Image.open(source / "1.png").convert("L").save(folder / "Zürich ☃" / "ä, ü.bmp")
    Image.open(source / "2.png").convert("RGBA").save(folder / "Zürich ☃" / "deep" / "c.webp")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"no picture")
    (folder / ".cache").mkdir()
    shutil.copy(source / "0.png", folder / ".cache" / "d.png")
    return folder

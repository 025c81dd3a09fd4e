"""Engine for the tests of this folder, and the toy world they share."""

import sys
from pathlib import Path

import pytest

from dassl_host import ensure_dassl

# The helpers beside this file are also run as commands, in processes with another engine.
sys.path.append(str(Path(__file__).parent))
ensure_dassl()


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

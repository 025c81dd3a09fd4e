"""The shared image cache: every file is decoded once, whoever asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dassl.utils import read_image
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainers.image_cache import ImageCache


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    rng, found = np.random.default_rng(0), []
    for number, size in enumerate([(20, 30, 3), (64, 48, 3), (300, 100, 3)]):
        found.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(found[-1])
    return found


def test_images_come_back_as_they_are_and_are_decoded_once(paths: list[str]) -> None:
    decoded = []
    cache = ImageCache(paths, side_px=256, max_gb=1.0, read=lambda path: decoded.append(path) or read_image(path))
    for _ in range(3):
        for path in paths:
            assert cache(path).tobytes() == read_image(path).tobytes()
    assert decoded == paths


def test_long_images_are_reduced_to_the_shorter_side(paths: list[str]) -> None:
    cache = ImageCache(paths, side_px=24, max_gb=1.0)
    assert [cache(path).size for path in paths] == [(30, 20), (24, 32), (24, 72)]
    assert cache.size_bytes == 3 * (30 * 20 + 24 * 32 + 24 * 72)


def test_too_large_a_cache_is_refused_with_the_number(paths: list[str]) -> None:
    with pytest.raises(ValueError, match="CACHE_IMAGES ram would need 0.000 GB, CACHE_MAX_GB is 1e-05"):
        ImageCache(paths, side_px=256, max_gb=1e-5)


def test_estimate_is_logged_first(paths: list[str], caplog) -> None:
    with caplog.at_level("INFO"):
        ImageCache(paths, side_px=256, max_gb=1.0)
    assert caplog.messages == ["Image cache: 3 images, 0.000 GB of memory"]


class Rows(Dataset):
    """Reads through a cache in worker processes."""

    def __init__(self, cache: ImageCache, paths: list[str]) -> None:
        self.cache, self.paths = cache, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        return int(np.asarray(self.cache(self.paths[index])).sum())


def refuse(path: str) -> None:
    raise AssertionError(f"decoded again: {path}")


def test_what_a_worker_decodes_all_processes_see(paths: list[str]) -> None:
    cache = ImageCache(paths, side_px=256, max_gb=1.0)
    first = list(DataLoader(Rows(cache, paths), batch_size=None, num_workers=1))
    cache._read = refuse
    assert [int(np.asarray(cache(path)).sum()) for path in paths] == first


def test_run_with_cache_equals_the_run_without(make_trainer) -> None:
    found = []
    for mode in ("none", "ram"):
        trainer = make_trainer("LaFTer", {".CACHE_IMAGES": mode, ".TEACHER": "self"}, run=mode)
        trainer.train()
        found.append(trainer.adapt.prompts.tolist())
    assert found[0] == found[1]


def test_a_run_decodes_no_training_file_twice(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".CACHE_IMAGES": "ram", ".TEACHER": "self"})
    cache, decoded = trainer.train_loader_x.dataset.read, []
    read = cache._read

    def read_and_note(path: str):
        decoded.append(path)
        return read(path)

    cache._read = read_and_note
    trainer.train()
    assert sorted(decoded) == sorted(item.impath for item in trainer.dm.dataset.train_x)

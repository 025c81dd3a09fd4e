"""The built-in digits: what is in them, and that files are made once, verified and repaired."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

from datasets import handwritten_digits
from datasets.handwritten_digits import CLASSNAMES, IMAGE_SIZE_PX, HandwrittenDigits


def config(root: Path | str, **changes: object) -> CfgNode:
    dataset = {"ROOT": str(root), "NUM_SHOTS": -1, "SUBSAMPLE_CLASSES": "all"}
    seed = changes.pop("SEED", 1)
    return CfgNode({"SEED": seed, "DATASET": {**dataset, **changes}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data root")
    HandwrittenDigits(config(path))
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_splits_have_the_published_sizes_and_names(root: Path) -> None:
    digits = HandwrittenDigits(config(root))
    assert [len(split) for split in (digits.train_x, digits.val, digits.test)] == [1078, 359, 360]
    assert digits.classnames == list(CLASSNAMES)
    assert digits.lab2cname[7] == "seven" and digits.num_classes == 10
    assert all(CLASSNAMES[item.label] == item.classname for item in digits.train_x + digits.val + digits.test)


def test_splits_are_contiguous_in_file_order_and_disjoint(root: Path) -> None:
    digits = HandwrittenDigits(config(root))
    numbers = [[int(Path(item.impath).stem) for item in split] for split in (digits.train_x, digits.val, digits.test)]
    assert numbers == [list(range(1078)), list(range(1078, 1437)), list(range(1437, 1797))]


def test_pictures_show_the_source_digit_at_the_right_label(root: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    digits = HandwrittenDigits(config(root))
    for item in digits.train_x[::97] + digits.test[::97]:
        index = int(Path(item.impath).stem)
        picture = Image.open(item.impath)
        assert picture.size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
        assert item.label == source.target[index]
        shrunk = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float) / 255 * 16
        assert np.corrcoef(shrunk.ravel(), source.images[index].ravel())[0, 1] > 0.98


def test_two_generations_are_byte_identical(root: Path, tmp_path: Path) -> None:
    HandwrittenDigits(config(tmp_path))
    assert hashes(tmp_path) == hashes(root)
    assert len(hashes(root)) == 1797 + 1


def test_second_use_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("files were made again")

    monkeypatch.setattr(handwritten_digits, "render_digits", fail)
    HandwrittenDigits(config(root))


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_damaged_file_is_noticed_and_rebuilt(damage: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = root / "handwritten_digits"
    before = hashes(root)
    victim = folder / "manifest.json" if damage == "manifest" else min((folder / "val" / "three").iterdir())
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100])
    with caplog.at_level(logging.INFO, logger="datasets"):
        HandwrittenDigits(config(root))
    assert hashes(root) == before
    assert victim.name in caplog.text


def test_other_images_in_the_folder_are_not_items(root: Path) -> None:
    stray = root / "handwritten_digits" / "train" / "zero" / "mine.png"
    stray.write_bytes(b"no picture")
    try:
        assert len(HandwrittenDigits(config(root)).train_x) == 1078
    finally:
        stray.unlink()


def test_empty_root_uses_data_below_the_working_directory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="datasets"):
        digits = HandwrittenDigits(config(""))
    assert Path(digits.test[0].impath).is_relative_to(tmp_path / "data")
    assert str(tmp_path / "data") in caplog.text


def test_unwritable_root_is_an_error_naming_key_and_path(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match="DATASET.ROOT.*a file"):
        HandwrittenDigits(config(blocked))


def test_few_shots_and_base_classes_act(root: Path) -> None:
    digits = HandwrittenDigits(config(root, NUM_SHOTS=16, SUBSAMPLE_CLASSES="new"))
    assert digits.classnames == ["five", "six", "seven", "eight", "nine"]
    assert (len(digits.train_x), len(digits.val)) == (5 * 16, 5 * 4)
    assert {item.label for item in digits.test} == set(range(5))

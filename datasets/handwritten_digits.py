"""HandwrittenDigits: 1,797 real handwritten digits, made from scikit-learn's `load_digits` on first use.

Source: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
Repository, 1998, CC BY 4.0), 8x8 grey pictures with values 0 to 16, which scikit-learn ships. Nothing is downloaded.
"""
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from PIL import Image
from yacs.config import CfgNode

from datasets.base import (
    Item,
    check_classes,
    choose_few_shots,
    ensure_files,
    resolve_builtin_root,
    subsample_classes,
)

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# In file order: neighbouring pictures share writers, so a shuffled split would put one hand into train and test.
SPLIT_SIZES = {"train": 1078, "val": 359, "test": 360}

# The input size of tiny12, so that its test transform leaves the pixels as they are; six times the 8x8 original.
IMAGE_SIZE_PX = 48

SOURCE_MAX = 16  # grey values of the source are 0 (paper) to 16 (ink)
RECIPE = {"version": 1, "size_px": IMAGE_SIZE_PX, "filter": "bicubic"}


@DATASET_REGISTRY.register()
class HandwrittenDigits(DatasetBase):
    """Ten classes, zero to nine; contiguous split in file order, 1,078 train / 359 val / 360 test.

    Pictures are written once as PNG below DATASET.ROOT (default ./data) and verified by hash at every start. Labels are
    real in every split; label-free trainers do not read them.
    """

    dataset_dir = "handwritten_digits"
    split_kind = "contiguous"

    def __init__(self, cfg: CfgNode) -> None:
        folder = resolve_builtin_root(cfg.DATASET.ROOT, type(self).__name__) / self.dataset_dir
        splits = list_splits(folder, ensure_files(folder, RECIPE, render_digits))
        train, val = choose_few_shots(splits["train"], splits["val"], shots=cfg.DATASET.NUM_SHOTS, seed=cfg.SEED)
        train, val, test = subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, val, splits["test"])
        check_classes(type(self).__name__, train, test)
        super().__init__(train_x=train, val=val, test=test)


def render_digits() -> Iterable[tuple[str, bytes]]:
    """Yield (relative path, PNG bytes) of every digit, white on black, in file order."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import; needed on first use only

    source = load_digits()
    names = [_relative_path(index, label) for index, label in enumerate(source.target)]
    for name, picture in zip(names, source.images, strict=True):
        grey = Image.fromarray((picture * (255 / SOURCE_MAX)).round().astype(np.uint8))
        enlarged = grey.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        enlarged.save(buffer, format="PNG")
        yield name, buffer.getvalue()


def _relative_path(index: int, label: int) -> str:
    """Path of the picture `index` (position in the source): its split, its class, its number."""
    first = 0
    for split, size in SPLIT_SIZES.items():
        if index < first + size:
            return f"{split}/{CLASSNAMES[label]}/{index:04d}.png"
        first += size
    raise ValueError(f"digit {index} is outside the {first} pictures of the split")


def list_splits(folder: Path, names: Iterable[str]) -> dict[str, list[Item]]:
    """Items of each split, in file order, from the relative paths `split/class/number.png`."""
    labels = {classname: label for label, classname in enumerate(CLASSNAMES)}
    splits: dict[str, list[Item]] = {split: [] for split in SPLIT_SIZES}
    for name in sorted(names, key=lambda name: name.rsplit("/", 1)[-1]):
        split, classname, _ = name.split("/")
        splits[split].append(Item(str(folder / name), labels[classname], classname=classname))
    return splits

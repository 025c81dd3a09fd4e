"""EmoSet-118K: 118,102 pictures with eight emotions, labelled by machine and checked by people; no votes.

Source: J. Yang, Q. Huang, T. Ding, D. Lischinski, D. Cohen-Or, H. Huang, "EmoSet: A Large-scale Visual Emotion Dataset with
Rich Attributes", ICCV 2023.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture, find_entry, list_class_folders
from datasets.image_files import read_text, some

PARTS = ("train", "val", "test")


@DATASET_REGISTRY.register()
class EmoSet(EmotionDataset):
    """Eight classes; the authors' split of 80, 5 and 15 %."""

    dataset_dir = "EmoSet-118K"
    also_named = ("EmoSet",)
    layout = "image/<emotion>/*.jpg, train.json, val.json and test.json"
    published_size = 118_102
    test_share = 0.15
    val_share = 0.05 / 0.85
    official_files = "train.json, val.json and test.json"

    def read_pictures(self) -> list[Picture]:
        return list_class_folders(self.require("image"), self.classes, self.folder)

    def read_official(self) -> Mapping[str, list[str]] | None:
        files = {part: find_entry(self.folder, f"{part}.json") for part in PARTS}
        if not any(files.values()):
            return None
        return {part: read_image_names(file or self.require(f"{part}.json")) for part, file in files.items()}


@DATASET_REGISTRY.register()
class Emoset(EmoSet):
    """EmoSet under the name that other code bases register."""


def read_image_names(file: Path) -> list[str]:
    """Image paths of one part.

    Rows have three or four elements, of which one starts with `image/`: [emotion, (id,) image path, annotation path].

    Raises:
        ValueError: If the file is no list of such rows (names file and rows).
    """
    try:
        rows = json.loads(read_text(file))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a {type(rows).__name__}; expected a list of rows")
    names = [_image_of(row) for row in rows]
    wrong = [f"row {number}: {row!r:.80}" for number, (row, name) in enumerate(zip(rows, names, strict=True), 1) if not name]
    if wrong:
        raise ValueError(f"{file} has {len(wrong)} rows without one element that starts with 'image/': {some(wrong)}")
    return names


def _image_of(row: object) -> str:
    cells = row if isinstance(row, list) else []
    images = [cell for cell in cells if isinstance(cell, str) and cell.startswith("image/")]
    return images[0] if len(images) == 1 else ""

"""FI (Flickr and Instagram): 23,308 pictures that at least three of five people agreed on; the votes are not published.

Source: Q. You, J. Luo, H. Jin, J. Yang, "Building a Large Scale Dataset for Image Emotion Recognition: The Fine Print and
The Benchmark", AAAI 2016.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture, list_class_folders
from datasets.image_files import some

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class FI(EmotionDataset):
    """Eight classes; seeded split of 80, 5 and 15 %, since the authors published none.

    Many pictures have been removed at their hosts since, and copies hold one placeholder under several names: those are
    reported.
    """

    dataset_dir = "FI"
    layout = "emotion_dataset/<emotion>/*.jpg"
    published_size = 23_308
    test_share = 0.15
    val_share = 0.05 / 0.85

    def read_pictures(self) -> list[Picture]:
        pictures = list_class_folders(self.require("emotion_dataset"), self.classes, self.folder)
        repeated = find_repeated(self.folder / picture.name for picture in pictures)
        if repeated:
            listed = some([", ".join(path.relative_to(self.folder).as_posix() for path in group[:3]) for group in repeated])
            logger.warning(
                "%s: %d files hold only %d different pictures (placeholders of removed images, most likely): %s. "
                "Delete them, or they are learned from and tested on",
                self.name, sum(map(len, repeated)), len(repeated), listed,
            )  # fmt: skip
        return pictures


def find_repeated(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of two or more files with the same bytes, the largest group first; only files of equal size are read."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    by_content: defaultdict[str, list[Path]] = defaultdict(list)
    for same_size in by_size.values():
        if len(same_size) > 1:
            for path in same_size:
                by_content[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
    return sorted((group for group in by_content.values() if len(group) > 1), key=len, reverse=True)

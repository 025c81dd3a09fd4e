"""ImageNet (O. Russakovsky et al., 2015) and its four test sets of other pictures.

Class names are those of CLIP's authors, from CoOp's `classnames.txt`: a line `n01440764 tench` per class.
"""

from collections.abc import Mapping
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.base import Item
from datasets.image_files import list_folders, list_images, some
from datasets.split_dataset import SplitDataset, list_class_folders
from datasets.splits import Parts, Row


class ImageNetFamily(SplitDataset):
    """Folders named by WordNet numbers, and a file of class names that takes the place of CoOp's split file."""

    @property
    def coop_file(self) -> Path:
        """`classnames.txt` of this set, or else the one of ImageNet beside it."""
        own, shared = (self.folder / "classnames.txt", self.folder.parent / "imagenet" / "classnames.txt")
        return shared if shared.is_file() and not own.is_file() else own

    def read_names(self) -> dict[str, str]:
        """WordNet number -> class name, in the order of the file."""
        if not self.coop_file.is_file():
            raise FileNotFoundError(f"{self.name} needs {self.coop_file}; {self.by_hand}")
        lines = self.coop_file.read_text("utf-8").splitlines()
        return {number: name.strip() for number, _, name in (line.strip().partition(" ") for line in lines) if number}

    def list_parts(self, parts: Mapping[str, str]) -> dict[str, list[Row]]:
        """Rows of parts that are folders of class folders (part -> folder), with class names.

        Raises:
            ValueError: If a folder has no name in the file (names the first few).
        """
        names = self.read_names()
        listed = list_class_folders(self.images, parts)
        unknown = sorted({folder for rows in listed.values() for _, _, folder in rows} - set(names))
        if unknown:
            raise ValueError(f"{self.coop_file} lacks {len(unknown)} class folder(s) of {self.images}: {some(unknown)}")
        return {part: [(path, label, names[folder]) for path, label, folder in rows] for part, rows in listed.items()}


@DATASET_REGISTRY.register()
class ImageNet(ImageNetFamily):
    """The published validation part is the test part. There is no val: CoOp would select on test."""

    dataset_dir = "imagenet"
    expects = ("train", "val")
    by_hand = "put the class folders into imagenet/images/train and imagenet/images/val, and CoOp's classnames.txt into imagenet"

    def read_coop(self) -> Parts:
        """The two parts as published."""
        return self.build(self.list_parts({"train": "train", "test": "val"}), self.images)

    def list_rows(self) -> list[Row]:
        """Rows of both parts."""
        return [row for rows in self.list_parts({"train": "train", "test": "val"}).values() for row in rows]


class EvaluationSet(ImageNetFamily):
    """All pictures are test pictures, and train repeats them so that the classes are known; SPLIT seeded divides them 80/20."""

    shares: Mapping[str, float] = {"train": 0.8, "test": 0.2}

    def read_coop(self) -> Parts:
        """Train and test are the same pictures; a trainer that learns refuses that."""
        items = self.build({"test": self.list_rows()}, self.images)["test"]
        return {"train": items, "test": items}

    def choose_shots(self, cfg: CfgNode, train: list[Item], val: list[Item]) -> tuple[list[Item], list[Item]]:
        """Few shots of a seeded split; nothing is learned from the other."""
        return (train, val) if self.split_kind == "coop" else super().choose_shots(cfg, train, val)

    def list_rows(self) -> list[Row]:
        """Rows of the class folders."""
        return self.list_parts({"test": ""})["test"]


@DATASET_REGISTRY.register()
class ImageNetSketch(EvaluationSet):
    """ImageNet-Sketch (H. Wang et al., 2019): drawings of the 1,000 classes."""

    dataset_dir = "imagenet-sketch"


@DATASET_REGISTRY.register()
class ImageNetA(EvaluationSet):
    """ImageNet-A (D. Hendrycks et al., 2021): natural pictures of 200 classes that misled a ResNet-50."""

    dataset_dir = "imagenet-adversarial"
    image_dirs = ("imagenet-a",)


@DATASET_REGISTRY.register()
class ImageNetR(EvaluationSet):
    """ImageNet-R (D. Hendrycks et al., 2021): paintings, toys and other renditions of 200 classes."""

    dataset_dir = "imagenet-rendition"
    image_dirs = ("imagenet-r",)


@DATASET_REGISTRY.register()
class ImageNetV2(EvaluationSet):
    """ImageNetV2, matched frequency (B. Recht et al., 2019); its folders are numbers of classes, in the order of the names."""

    dataset_dir = "imagenetv2"
    image_dirs = ("imagenetv2-matched-frequency-format-val",)

    def list_rows(self) -> list[Row]:
        """Rows of the folders 0 to 999."""
        names = list(self.read_names().values())
        folders = sorted((int(folder.name), folder) for folder in list_folders(self.images))
        return [
            (f"{folder.name}/{path.name}", label, names[label])
            for label, folder in folders
            for path in list_images(folder)[0]
        ]

"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) as image files, 32x32 px.

The names end in `_local` because Dassl owns `CIFAR10` and `CIFAR100`.
"""

import os
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset, list_class_folders
from datasets.splits import Row


class CifarFolders(SplitDataset):
    """`train` and `test` folders of class folders; val is a seeded fifth of train."""

    image_dirs = ("",)
    expects = ("train", "test")

    @property
    def official_file(self) -> Path:
        """The folder of the training part."""
        return self.images / "train"

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of both folders."""
        return list_class_folders(self.images, {"train": "train", "test": "test"})

    def list_rows(self) -> list[Row]:
        """Rows of both folders, together."""
        return [row for rows in self.read_official().values() for row in rows]

    def unpack(self) -> None:
        """Write what torchvision fetched and verified as PNG files, a folder per part and class."""
        from torchvision import datasets as torchvision_datasets

        for part in self.expects:
            if not (self.folder / part).is_dir():
                pictures = getattr(torchvision_datasets, self.source.reader)(root=str(self.folder), train=part == "train")
                write_folders(pictures, self.folder / part)


def write_folders(pictures, folder: Path) -> None:
    """Write labelled pictures into class folders; `folder` appears when all are written."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    for name in pictures.classes:
        (unfinished / name).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(pictures):
        image.save(unfinished / pictures.classes[label] / f"{number:05d}.png")
    unfinished.rename(folder)


@DATASET_REGISTRY.register()
class CIFAR10_local(CifarFolders):  # noqa: N801  (registered names are class names)
    """Ten kinds of vehicles and animals; 50,000 training and 10,000 test pictures."""

    dataset_dir = "cifar10"
    source = TorchvisionSource("CIFAR10")


@DATASET_REGISTRY.register()
class CIFAR100_local(CifarFolders):  # noqa: N801
    """A hundred classes; 50,000 training and 10,000 test pictures."""

    dataset_dir = "cifar100"
    source = TorchvisionSource("CIFAR100")

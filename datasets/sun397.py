"""SUN397 (J. Xiao et al., CVPR 2010): scenes in 397 classes."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.image_files import list_folders, list_images
from datasets.split_dataset import SplitDataset
from datasets.splits import Row


@DATASET_REGISTRY.register()
class SUN397(SplitDataset):
    """Class folders lie in a folder per first letter, some with another folder for indoor or outdoor below."""

    dataset_dir = "sun397"
    image_dirs = ("SUN397",)
    source = TorchvisionSource("SUN397")

    def list_rows(self) -> list[Row]:
        """Rows of all folders that hold pictures."""
        found = [(folder, images) for folder in self._folders(self.images) if (images := list_images(folder)[0])]
        paths = [folder.relative_to(self.images).as_posix() for folder, _ in found]
        return [
            (f"{path}/{image.name}", label, scene_of(path))
            for label, (path, (_, images)) in enumerate(zip(paths, found, strict=True))
            for image in images
        ]

    def _folders(self, top: Path) -> list[Path]:
        return [path for folder in list_folders(top) for path in (folder, *self._folders(folder))]


def scene_of(path: str) -> str:
    """`outdoor apartment_building` from `a/apartment_building/outdoor`."""
    return " ".join(reversed(path.split("/")[1:]))

"""Oxford Flowers 102 (M. Nilsback, A. Zisserman, 2008): flowers of Britain in 102 classes."""

import json

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset, load_mat
from datasets.splits import Row

SET_KEYS = {"train": "trnid", "val": "valid", "test": "tstid"}  # in setid.mat


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitDataset):
    """Officially 1,020 training, 1,020 validation and 6,149 test pictures; CoOp's split is another, larger one."""

    dataset_dir = "oxford_flowers"
    image_dirs = ("jpg", "flowers-102/jpg")
    official_list = "setid.mat"
    source = TorchvisionSource("Flowers102")

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of `setid.mat`."""
        rows = self.list_rows()
        numbers = load_mat(self.base / self.official_list)
        return {part: [rows[number - 1] for number in numbers[key].ravel().tolist()] for part, key in SET_KEYS.items()}

    def list_rows(self) -> list[Row]:
        """Rows of `imagelabels.mat`: the class of every picture, both counted from 1."""
        labels = load_mat(self.base / "imagelabels.mat")["labels"].ravel().tolist()
        names = self.read_names()
        return [(f"image_{number:05d}.jpg", label - 1, names[label - 1]) for number, label in enumerate(labels, 1)]

    def read_names(self) -> list[str]:
        """Class names of CoOp's `cat_to_name.json` ({"1": name, ...}) if it is there, else torchvision's."""
        path = self.folder / "cat_to_name.json"
        if path.is_file():
            names = json.loads(path.read_text("utf-8"))
            return [names[number] for number in sorted(names, key=int)]
        from torchvision.datasets import Flowers102

        if not hasattr(Flowers102, "classes"):  # older releases have no names
            raise FileNotFoundError(f"OxfordFlowers needs {path}, which comes with CoOp's data")
        return list(Flowers102.classes)

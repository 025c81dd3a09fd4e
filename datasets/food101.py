"""Food-101 (L. Bossard, M. Guillaumin, L. Van Gool, ECCV 2014): dishes in 101 classes."""

import json

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset
from datasets.splits import Row


@DATASET_REGISTRY.register()
class Food101(SplitDataset):
    """Officially 750 noisy training and 250 checked test pictures per class."""

    dataset_dir = "food-101"
    official_list = "meta/train.json"
    source = TorchvisionSource("Food101", beside=True)

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of `meta/{train,test}.json`: {class: [path without ending, ...]}."""
        lists = {part: json.loads((self.base / "meta" / f"{part}.json").read_text("utf-8")) for part in ("train", "test")}
        labels = {name: label for label, name in enumerate(sorted(lists["train"]))}
        return {
            part: [(f"{path}.jpg", labels[name], name) for name, paths in classes.items() for path in paths]
            for part, classes in lists.items()
        }

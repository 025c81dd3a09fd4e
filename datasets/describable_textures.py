"""Describable Textures (M. Cimpoi et al., CVPR 2014): textures in 47 classes."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset
from datasets.splits import PARTS, Row


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    """Officially ten partitions into equal thirds; the first one is read."""

    dataset_dir = "dtd"
    image_dirs = ("images", "dtd/images")
    official_list = "labels/train1.txt"
    source = TorchvisionSource("DTD", beside=True)

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of `labels/{train,val,test}1.txt`, a line `class/file.jpg` each."""
        lists = {part: (self.base / "labels" / f"{part}1.txt").read_text("utf-8").split() for part in PARTS}
        names = sorted({name.split("/")[0] for lines in lists.values() for name in lines})
        return {
            part: [(line, names.index(name), name) for line in lines for name in [line.split("/")[0]]]
            for part, lines in lists.items()
        }

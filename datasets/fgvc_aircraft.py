"""FGVC-Aircraft (S. Maji et al., 2013): aeroplanes in 100 variants."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset
from datasets.splits import PARTS, Parts, Row


@DATASET_REGISTRY.register()
class FGVCAircraft(SplitDataset):
    """CoOp uses the authors' own split, so the two kinds are one and need no split file."""

    dataset_dir = "fgvc_aircraft"
    image_dirs = ("images", "fgvc-aircraft-2013b/data/images")
    official_list = "images_variant_train.txt"
    source = TorchvisionSource("FGVCAircraft")
    comparable = ("coop", "official")

    @property
    def coop_file(self) -> Path:
        """The first of the authors' three lists."""
        return self.base / self.official_list

    def read_coop(self) -> Parts:
        """The authors' split."""
        return self.build(self.read_official(), self.coop_file)

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of `images_variant_{train,val,test}.txt`, a line `number variant` each, numbered as in `variants.txt`."""
        variants = (self.base / "variants.txt").read_text("utf-8").splitlines()
        labels = {name.strip(): label for label, name in enumerate(variants)}
        rows: dict[str, list[Row]] = {}
        for part in PARTS:
            lines = (self.base / f"images_variant_{part}.txt").read_text("utf-8").splitlines()
            pairs = [line.strip().split(" ", 1) for line in lines]
            rows[part] = [(f"{number}.jpg", labels[name], name) for number, name in pairs]
        return rows

    def list_rows(self) -> list[Row]:
        """All images of the three lists: they lie in one folder, without a class in their name."""
        return [row for part in self.read_official().values() for row in part]

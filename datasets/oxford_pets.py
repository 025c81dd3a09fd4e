"""Oxford-IIIT Pet (O. Parkhi et al., CVPR 2012): cats and dogs in 37 breeds."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.image_files import list_images
from datasets.split_dataset import SplitDataset
from datasets.splits import Row


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    """Officially 3,680 pictures to train and validate on and 3,669 to test on; a picture's name begins with its breed."""

    dataset_dir = "oxford_pets"
    image_dirs = ("images", "oxford-iiit-pet/images")
    official_list = "annotations/trainval.txt"
    source = TorchvisionSource("OxfordIIITPet")

    def read_official(self) -> dict[str, list[Row]]:
        """Rows of `annotations/{trainval,test}.txt`, a line `Breed_number class species breed` each."""
        rows: dict[str, list[Row]] = {}
        for part, name in (("train", "trainval"), ("test", "test")):
            lines = (self.base / "annotations" / f"{name}.txt").read_text("utf-8").splitlines()
            words = [line.split() for line in lines if line.strip()]
            rows[part] = [(f"{stem}.jpg", int(number) - 1, breed_of(stem)) for stem, number, *_ in words]
        return rows

    def list_rows(self) -> list[Row]:
        """Rows of the image folder."""
        images = list_images(self.images)[0]
        labels = {breed: label for label, breed in enumerate(sorted({breed_of(path.stem) for path in images}))}
        return [(path.name, labels[breed_of(path.stem)], breed_of(path.stem)) for path in images]


def breed_of(stem: str) -> str:
    """`great_pyrenees` from `Great_Pyrenees_12`."""
    return stem.rsplit("_", 1)[0].lower()

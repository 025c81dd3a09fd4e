"""Stanford Cars (J. Krause et al., 2013): cars in 196 classes of make, model and year."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.split_dataset import SplitDataset, load_mat
from datasets.splits import Row

LISTS = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}


@DATASET_REGISTRY.register()
class StanfordCars(SplitDataset):
    """Its addresses are gone, so that neither torchvision nor we can fetch it."""

    dataset_dir = "stanford_cars"
    image_dirs = ("",)
    expects = ("cars_train", "cars_test")
    by_hand = (
        "put the training and test pictures into stanford_cars/cars_train and stanford_cars/cars_test, the unpacked devkit "
        "into stanford_cars/devkit, cars_test_annos_withlabels.mat and CoOp's split_zhou_StanfordCars.json into stanford_cars"
    )

    def list_rows(self) -> list[Row]:
        """Rows of the authors' annotations of both folders; the year moves to the front of the name."""
        names = [str(name[0]) for name in load_mat(self.images / "devkit/cars_meta.mat")["class_names"].ravel()]
        rows = []
        for folder, path in LISTS.items():
            for entry in load_mat(self.images / path)["annotations"].ravel():
                label = int(entry["class"].item()) - 1
                model, _, year = names[label].rpartition(" ")
                rows.append((f"{folder}/{entry['fname'].item()}", label, f"{year} {model}"))
        return rows

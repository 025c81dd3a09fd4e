"""Caltech-101 (L. Fei-Fei, R. Fergus, P. Perona, 2004): objects in 100 classes, as CoOp counts them."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    """Without the background clutter and the second, cropped set of faces."""

    dataset_dir = "caltech-101"
    image_dirs = ("101_ObjectCategories", "caltech101/101_ObjectCategories")
    source = TorchvisionSource("Caltech101")
    skipped_folders = ("BACKGROUND_Google", "Faces_easy")
    renamed = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}

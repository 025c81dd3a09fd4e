"""EuroSAT (P. Helber et al., 2019): Sentinel-2 satellite pictures, 64x64 RGB, of ten kinds of land use."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset


@DATASET_REGISTRY.register()
class EuroSAT(SplitDataset):
    """Class folders get the names that CoOp's split file uses."""

    dataset_dir = "eurosat"
    image_dirs = ("2750",)
    source = TorchvisionSource("EuroSAT", beside=True)
    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }

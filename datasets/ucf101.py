"""UCF101 (K. Soomro, A. Zamir, M. Shah, 2012): the middle frame of every video, actions in 101 classes."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.split_dataset import SplitDataset


@DATASET_REGISTRY.register()
class UCF101(SplitDataset):
    """CoOp prepared the frames. A seeded split puts clips of one video into train and test: for trying things out only."""

    dataset_dir = "ucf101"
    image_dirs = ("UCF-101-midframes",)
    by_hand = "unpack CoOp's UCF-101-midframes.zip and put its split_zhou_UCF101.json beside that folder"

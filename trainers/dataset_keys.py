"""Keys below `DATASET` that the folder `datasets/` reads: default, unit and allowed values, once."""

from __future__ import annotations

from yacs.config import CfgNode


def add_dataset_keys(node: CfgNode) -> None:
    """Add the keys of our data sets to Dassl's node `DATASET` in place."""
    node.SUBSAMPLE_CLASSES = "all"  # all | base (first half of the sorted labels) | new (the rest)
    node.SPLIT = "auto"  # auto (coop or published if there, else seeded) | coop | official | seeded
    node.SPLIT_SEED = 0  # of the seeded splits; 0 or more
    node.TEST_PERCENT = 0.0  # share of the images in a seeded test split, [0, 1); 0 = the data set's own share
    node.DOWNLOAD = False  # fetch a benchmark through torchvision if it is not there
    node.SKIP_BROKEN = False  # drop and record missing or unreadable images instead of stopping
    node.IMAGE_DIR = ""  # of a CustomImages file: folder that its image paths are relative to; "" = beside the file
    node.CLASSNAMES = ""  # of unlabelled CustomImages: text file with one class name per line; "" = classes.txt inside
    node.LABEL_SOURCE = "folder"  # of Emotion6: folder (the search keyword) | votes (their arg-max)
    node.TIES = "auto"  # labels from tied votes: auto (Abstract: drop, others: first) | first (in class order) | drop
    node.FOLD = -1  # of Abstract and ArtPhoto: 0-4 is the test fold of five; -1 = no folds, seeded 80/20
    node.WITH_NEUTRAL = False  # keep Emotion6's seventh vote as a class of the distribution

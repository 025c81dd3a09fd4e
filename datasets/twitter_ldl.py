"""Twitter_LDL: 10,045 pictures, each with the votes of eight people on eight emotions.

Source: J. Yang, M. Sun, X. Sun, "Learning Visual Sentiment Distributions via Augmented Conditional Probability Neural
Network", AAAI 2017.
"""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.flickr_ldl import VotedDataset


@DATASET_REGISTRY.register()
class Twitter_LDL(VotedDataset):  # noqa: N801  (the published name)
    """Eight voters; split 1 of the authors' file (8,036 and 2,009 images), else seeded 80/20."""

    dataset_dir = "Twitter_LDL"
    published_size = 10_045
    voters = 8

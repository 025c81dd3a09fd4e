"""Abstract: 280 abstract paintings, each with the votes of about 14 people on eight emotions.

Source: J. Machajdik, A. Hanbury, "Affective Image Classification Using Features Inspired by Psychology and Art Theory",
ACM Multimedia 2010.
"""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture
from datasets.image_files import list_images
from datasets.vote_tables import read_vote_table


@DATASET_REGISTRY.register()
class Abstract(EmotionDataset):
    """Eight classes; the label is the votes' arg-max, and tied paintings are left out (228 or 229 stay)."""

    dataset_dir = "Abstract"
    also_named = ("testImages_abstract",)
    layout = "abstract_*.jpg and ABSTRACT_groundTruth.csv"
    published_size = 280
    has_votes = True
    ties = "drop"
    folds = True

    def read_pictures(self) -> list[Picture]:
        source = self.require("ABSTRACT_groundTruth.csv")
        votes = read_vote_table(source, self.classes, delimiter=",")
        return self.join_votes({path.name: Picture(path.name) for path in list_images(self.folder)[0]}, votes, source)

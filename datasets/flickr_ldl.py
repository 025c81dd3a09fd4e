"""Flickr_LDL: 11,150 photos, each with the votes of eleven people on eight emotions.

Source: J. Yang, M. Sun, X. Sun, "Learning Visual Sentiment Distributions via Augmented Conditional Probability Neural
Network", AAAI 2017.
"""

from collections.abc import Mapping

from dassl.data.datasets import DATASET_REGISTRY

from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture
from datasets.image_files import list_images, some
from datasets.ldl_split import read_mat_split
from datasets.vote_tables import notice_vote_totals, read_vote_table


class VotedDataset(EmotionDataset):
    """Eight classes; whole votes in `ground_truth.txt`, the label is their arg-max.

    Attributes:
        voters: Votes per image.
    """

    layout = "images/*.jpg and ground_truth.txt"
    has_votes = True
    official_files = "a *config*.mat file"
    voters: int = 0

    def read_pictures(self) -> list[Picture]:
        source, images = self.require("ground_truth.txt"), self.require("images")
        votes = read_vote_table(source, self.classes, delimiter=" ")
        notice_vote_totals(source, votes, self.voters)
        files = {path.name: Picture(f"{images.name}/{path.name}") for path in list_images(images)[0]}
        return self.join_votes(files, votes, source)

    def read_official(self) -> Mapping[str, list[str]] | None:
        files = sorted(path for path in self.folder.glob("*.mat") if "config" in path.name.lower())
        if len(files) > 1:
            listed = some([path.name for path in files], ", ")
            raise ValueError(f"{self.folder} holds several split files: {listed}; expected one")
        if not files:
            return None
        images = self.require("images").name
        return {part: [f"{images}/{name}" for name in names] for part, names in read_mat_split(files[0]).items()}


@DATASET_REGISTRY.register()
class Flickr_LDL(VotedDataset):  # noqa: N801  (the published name)
    """Eleven voters; split 1 of the authors' file (8,920 and 2,230 images), else seeded 80/20."""

    dataset_dir = "Flickr_LDL"
    published_size = 11_150
    voters = 11

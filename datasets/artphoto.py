"""ArtPhoto: 806 art photographs, labelled by the artists who uploaded them; no votes.

Source: J. Machajdik, A. Hanbury, "Affective Image Classification Using Features Inspired by Psychology and Art Theory",
ACM Multimedia 2010.
"""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture
from datasets.image_files import list_images, some
from datasets.vote_tables import emotion_name


@DATASET_REGISTRY.register()
class ArtPhoto(EmotionDataset):
    """Eight classes, in the file names: `<emotion>_<number>.jpg`."""

    dataset_dir = "ArtPhoto"
    also_named = ("testImages_artphoto",)
    layout = "<emotion>_<number>.jpg"
    published_size = 806
    folds = True

    def read_pictures(self) -> list[Picture]:
        names = [path.name for path in list_images(self.folder)[0]]
        pictures = [Picture(name, emotion_name(name.partition("_")[0])) for name in names]
        wrong = [picture.name for picture in pictures if picture.emotion not in self.classes]
        if wrong:
            raise ValueError(
                f"{self.folder} has {len(wrong)} files whose name starts with no emotion: {some(wrong)}; "
                f"expected {self.layout} with {', '.join(self.classes)}"
            )
        return pictures

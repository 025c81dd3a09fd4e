"""CaptionFiles: a user's own captions, with or without pictures; docs/CUSTOM_DATA.md shows the forms."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.caption_reading import SUFFIXES
from datasets.caption_sources import Source
from datasets.captioning import NODE, CaptionDataset
from datasets.data_folders import discover
from datasets.image_files import list_images

STEMS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


@DATASET_REGISTRY.register()
class CaptionFiles(CaptionDataset):
    """Text lines, CSV, TSV, JSON Lines or JSON, and folders of pictures to be captioned.

    Files, columns and encoding are named by DATASET.CAPTION.*; the folder is DATASET.ROOT, or DATASET.CAPTION.DIR inside it.
    Without such names `train`, `val` and `test` are looked for, then `captions`, then pictures alone, which are all of test.
    """

    wanted_files = f"train, val, test or captions with the ending {', '.join(SUFFIXES)}, and no picture"

    def find_file(self, part: str) -> Path | None:
        """Return `<part>`, `<part>_captions` or `<folder>_<part>` with a known ending.

        Raises:
            ValueError: If several fit.
        """
        stems = [stem for word in STEMS[part] for stem in (word, f"{word}_captions", f"{self.folder.name}_{word}")]
        return next(iter(discover(self.folder, stems, SUFFIXES, part, f"{NODE}.{part.upper()}")), None)

    def find_whole(self, settings: CfgNode) -> Path | None:
        """Return `captions` with a known ending, unless another file is named for train.

        Raises:
            ValueError: If several fit.
        """
        if settings.TRAIN:
            return None
        return next(iter(discover(self.folder, ("captions",), SUFFIXES, "captions", f"{NODE}.TRAIN")), None)

    def find_rest(self, settings: CfgNode) -> dict[str, Source]:
        """Return the first image folder that has pictures, as test."""
        folders = [folder for folder in self.find_images(settings, {}) if list_images(folder)[0]]
        return {"test": Source((folders[0],))} if folders else {}

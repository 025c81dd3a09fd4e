"""AQUA: generated questions about the paintings of SemArt, visual ones and ones that need knowledge.

N. Garcia and others, "A Dataset and Baselines for Visual Question Answering on Art", ECCV workshops 2020
(https://github.com/noagarcia/ArtVQA, MIT). Files and pictures are fetched by the user.
"""

from collections.abc import Sequence
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.artquest import IMAGE_FOLDERS
from datasets.row_faults import Fault
from datasets.vqa_dataset import VQADataset
from datasets.vqa_records import Reading, Record

NEEDS_KNOWLEDGE = "need_external_knowledge"
TYPE_OF = {"True": "knowledge", "False": "visual"}


@DATASET_REGISTRY.register()
class AQUA(VQADataset):
    """AQUA as published: `train.json`, `val.json`, `test.json`; the question types are `knowledge` and `visual`.

    A knowledge question may be about what no picture shows. Its answer is asked for without the comment that it was made from.
    """

    usual_folders = ("aqua", "AQUA", "")
    prefixes = ("", "aqua_")
    image_folders = IMAGE_FOLDERS
    columns = {"question_type": NEEDS_KNOWLEDGE}
    published_sizes = {"train": 69_812, "val": 5_124, "test": 4_912}

    def read_parts(self, settings: CfgNode) -> dict[str, Sequence[Reading]]:
        """Return the questions of the parts that there are files for.

        Raises:
            ValueError: For everything that is wrong with the files, or if columns are named.
        """
        if settings.COLUMNS:
            raise ValueError("DATASET.VQA.COLUMNS: expected nothing, the published names are read")
        return super().read_parts(settings)

    def adapt(self, record: Record) -> Reading:
        """Return the row with its question type in words."""
        if record.question_type not in TYPE_OF:
            return Fault(f"{NEEDS_KNOWLEDGE} that is neither true nor false", record.origin)
        return replace(record, question_type=TYPE_OF[record.question_type])

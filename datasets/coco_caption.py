"""CocoCaption: COCO's captions in Karpathy's splits.

X. Chen et al., "Microsoft COCO Captions", arXiv 1504.00325; splits: A. Karpathy, L. Fei-Fei, "Deep Visual-Semantic Alignments
for Generating Image Descriptions", CVPR 2015, whose `restval` pictures train. Captions CC BY 4.0; pictures by the user.
"""

import re
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY

from datasets.caption_records import CaptionRecord
from datasets.captioning import CaptionDataset

_SUBSET = re.compile(r"COCO_(\w+?)_\d+\.")


@DATASET_REGISTRY.register()
class CocoCaption(CaptionDataset):
    """COCO as published by Karpathy: `dataset_coco.json`, or `{train,val,test}_captions.json` with picture -> captions."""

    usual_folders = ("coco", "annotations/coco", "COCO", "mscoco", "coco_captions", "")
    usual_files = ("dataset_coco.json", "{}_captions.json")
    published_sizes = {"train": (None, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}

    def complete(self, record: CaptionRecord) -> CaptionRecord:
        """Add the folder of the subset that a picture's name tells (val2014)."""
        subset = _SUBSET.match(record.image_id)
        if subset is None or len(record.images) != 1:
            return record
        return replace(record, images=(f"{subset[1]}/{record.images[0]}", *record.images))

"""Published caption data on this machine, for tests of mark `data`: skipped unless VIECAP_DATA names their folder.

The folder holds `dataset_coco.json` (Karpathy's splits), `visual_genome_entities.json` (the filter's names, as
scripts/viecap_convert.py writes them) and `stop_words.txt` (the reference's list, one word per line).
"""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import pytest

from trainers.viecap.words.captions import normalise_caption

__all__ = ["coco_captions", "data_file"]


def data_file(name: str) -> Path:
    """Return a file of the folder, or skip the test."""
    folder = os.environ.get("VIECAP_DATA", "")
    path = Path(folder) / name
    if not folder or not path.is_file():
        pytest.skip(f"VIECAP_DATA is {folder!r}; expected a folder with {name}")
    return path


def coco_captions(limit: int) -> list[str]:
    """Return the first training captions of COCO, normalised."""
    images = json.loads(data_file("dataset_coco.json").read_text("utf-8"))["images"]
    train = (image for image in images if image["split"] in ("train", "restval"))
    captions = (normalise_caption(sentence["raw"]) for image in train for sentence in image["sentences"])
    return list(islice((caption for caption in captions if caption), limit))

"""Flickr30kCaption: Flickr30k's captions in Karpathy's splits.

P. Young et al., "From image descriptions to visual denotations", TACL 2014; splits: A. Karpathy, L. Fei-Fei, CVPR 2015.
The authors' own lists (`results_20130124.token`, `results.csv`) name no split, so that a file with one has to lie beside them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY

from datasets.caption_reading import read_captions_of
from datasets.caption_records import CaptionReading, CaptionRecord
from datasets.caption_sources import Source
from datasets.captioning import NODE, PARTS, CaptionDataset
from datasets.text_decode import FileForm

LISTS = (".token", ".csv")
SPLITS = ("split.json", "splits.json", "flickr30k_split.json", "dataset_flickr30k.json")


@DATASET_REGISTRY.register()
class Flickr30kCaption(CaptionDataset):
    """Flickr30k: `dataset_flickr30k.json`, `{train,val,test}_captions.json`, or one of the authors' lists and a split file.

    In `results.csv` one row lacks its second separator: it is repaired, and counted in the report. Pictures of the lists
    that the split file does not name are left out, and counted (Karpathy's splits have 31,014 of 31,783).
    """

    usual_folders = ("flickr30k", "annotations/flickr30k", "Flickr30k", "flickr30k_images", "")
    usual_files = ("dataset_flickr30k.json", "{}_captions.json", "results_20130124.token", "results.csv")
    image_folders = ("images", "flickr30k-images", "flickr30k_images", "Images", "")
    published_sizes = {"train": (None, 145_000), "val": (1_014, None), "test": (1_000, None)}

    def read_source(self, source: Source) -> list[CaptionReading]:
        """Return the rows of a file, those of a list with the split that another file says."""
        file, *others = source.files
        if file.suffix.lower() not in LISTS:
            return super().read_source(source)
        beside = [path for name in SPLITS if (path := file.parent / name).is_file()]
        if len(others) > 1 or not (others or beside):
            expected = f"put {SPLITS[0]} beside it, or name both as {NODE}.TRAIN '{file.name},{SPLITS[0]}'"
            raise ValueError(f"{file} names no splits; {expected}: {{\"train\": [picture, ...], \"val\": ..., \"test\": ...}}")
        part_of = read_split(others[0] if others else beside[0], self.form)
        readings = [_in_split(row, part_of) for row in read_captions_of(file, self.form)]
        kept = [row for row in readings if row is not None]
        if len(kept) < len(readings):
            self.caption_report.append(f"{file.name}: {len(readings) - len(kept):,} captions of pictures in no split left out")
        return kept


def read_split(file: Path, form: FileForm) -> dict[str, str]:
    """Return picture, without ending -> split.

    Args:
        file: JSON: part -> list of pictures, picture -> part, or Karpathy's own file.
        form: How it is written.
    Raises:
        ValueError: If it is none of these forms.
    """
    content = form.read_json(file)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        rows = (row for row in read_captions_of(file, form) if isinstance(row, CaptionRecord))
        return {_stem(row.image_id): row.split for row in rows}
    found = _turned(content) if isinstance(content, dict) and set(content) <= {*PARTS, "restval"} else content
    if not isinstance(found, dict) or not found or not all(isinstance(part, str) for part in found.values()):
        raise ValueError(f"{file}: expected train, val and test with lists of pictures, or picture -> part")
    return {_stem(name): part for name, part in found.items()}


def _turned(parts: Mapping[str, Any]) -> dict[str, str] | None:
    if not all(isinstance(names, list) for names in parts.values()):
        return None
    return {str(name): part for part, names in parts.items() for name in names}


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".jpg")


def _in_split(row: CaptionReading, part_of: Mapping[str, str]) -> CaptionReading | None:
    """Return the row with its split; None if it has none."""
    if not isinstance(row, CaptionRecord):
        return row
    part = part_of.get(_stem(row.image_id))
    return None if part is None else replace(row, split=part)

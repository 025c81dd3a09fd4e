"""Pictures that are captioned, or their stored features; Dassl's loaders without one for training text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.datasets import Datum, build_dataset
from dassl.utils import read_image
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from trainers.viecap.caption_store.training_captions import extras_of


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is captioned.

    Attributes:
        inputs: Normalised RGB, (B, 3, H, W), or features of CLIP's image tower, (B, E), on the device.
        rows: Their numbers in the split.
    """

    inputs: Tensor
    rows: Sequence[int]


class CaptionImages(DatasetWrapper):
    """Dassl's data set wrapper: a row holds `img`, (3, H, W), or `features`, (E,), and `label`, `domain`, `impath`, `index`.

    Attributes:
        features: Of all items, (N, E), set before they are read; None: the pictures are opened.
    """

    features: Tensor | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        row = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        if self.features is not None:
            return row | {"features": self.features[index]}
        return row | {"img": self.transform(read_image(item.impath))}


class CaptionData:
    """Stands where Dassl's `DataManager` stands, which would refuse a data set without training captions.

    Attributes:
        dataset: The data set that `DATASET.NAME` names.
        val_loader, test_loader: Of its pictures; None where there are none.
        validation_loader: Of the first val pictures; None likewise.
        num_classes, num_source_domains, lab2cname: As of `DataManager`.

    Args:
        cfg: Full config.
        val_limit: Pictures of a validation; -1 = all.
    """

    def __init__(self, cfg: CfgNode, val_limit: int) -> None:
        self.dataset = build_dataset(cfg)
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        val = self.dataset.val or []
        self.val_loader, self.test_loader = build_loader(cfg, val), build_loader(cfg, self.dataset.test or [])
        is_limited = 0 <= val_limit < len(val)
        self.validation_loader = build_loader(cfg, val[:val_limit]) if is_limited else self.val_loader


def build_loader(cfg: CfgNode, items: Sequence[Datum]) -> DataLoader | None:
    """Return Dassl's loader of test items in their order; None for none."""
    if not items:
        return None
    node = cfg.DATALOADER.TEST
    return build_data_loader(
        cfg, sampler_type=node.SAMPLER, data_source=items, batch_size=node.BATCH_SIZE, is_train=False,
        dataset_wrapper=CaptionImages,
    )  # fmt: skip


def target_of(item: Datum) -> dict[str, Any]:
    """Return what the evaluator needs to know of an item."""
    extras = extras_of(item)
    return {"image_id": extras["image_id"], "captions": json.loads(extras["captions"]), "domain": extras.get("split_name", "")}


def distinct_images(items: Sequence[Datum]) -> dict[str, str]:
    """Return name of each picture -> its file.

    Raises:
        ValueError: If two files have one name.
    """
    files: dict[str, str] = {}
    for item in items:
        name = extras_of(item)["image_id"]
        if files.setdefault(name, item.impath) != item.impath:
            raise ValueError(f"image_id {name!r} names two files: {files[name]} and {item.impath}; expected one name for each")
    return files

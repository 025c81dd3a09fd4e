"""Fake trees of captions, in the forms that users and authors write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import build_dataset
from vqa_trees import make_cfg, write_images, write_json, write_lines, write_text

__all__ = ["captions_of", "coco_rows", "entities_of", "ids", "load", "nocaps_rows", "report_of", "write_images", "write_json",
           "write_lines", "write_text"]  # fmt: skip


def load(root: Path, name: str = "CaptionFiles", output_dir: Path | None = None, **settings: Any) -> Any:
    """Build a data set of captions; keys of DATASET are given with `dataset_`, all others are those of DATASET.CAPTION."""
    whole = {key.removeprefix("dataset_"): value for key, value in settings.items() if key.startswith("dataset_")}
    cfg = make_cfg(name, root, **whole)
    cfg.OUTPUT_DIR = str(output_dir or "")
    for key, value in settings.items():
        if not key.startswith("dataset_"):
            cfg.DATASET.CAPTION[key] = value
    return build_dataset(cfg)


def captions_of(items: Sequence[Any]) -> list[list[str]]:
    return [json.loads(item.extras["captions"]) for item in items]


def entities_of(items: Sequence[Any]) -> list[Any]:
    return [json.loads(item.extras["entities"]) if item.extras["entities"] else "" for item in items]


def ids(items: Sequence[Any]) -> list[str]:
    return [item.extras["image_id"] for item in items]


def report_of(data: Any) -> str:
    return "\n".join(data.caption_report)


def coco_rows() -> dict[str, Any]:
    """Content of a small dataset_coco.json: two pictures train, one each val and test; one of train was `restval`."""
    parts = {"391895": "train", "522418": "restval", "184613": "val", "318219": "test"}
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{int(number):012d}.jpg",
                "cocoid": int(number),
                "split": split,
                "sentences": [{"raw": f"Caption {n} of {number}. ", "tokens": ["caption"]} for n in (1, 2)],
            }
            for number, split in parts.items()
        ],
    }


def nocaps_rows() -> list[dict[str, Any]]:
    """Content of a small nocaps_corpus.json, a picture per domain."""
    return [
        {"split": domain, "image_id": f"{number}.jpg", "caption": [f"Caption {n} of {number}." for n in range(10)]}
        for number, domain in enumerate(("in_domain", "near_domain", "out_domain"))
    ]

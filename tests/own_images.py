"""Pictures of a user who has never heard of us, in every form that CustomImages reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from PIL import Image
from yacs.config import CfgNode

import datasets  # noqa: F401  (registers CustomImages)
from trainers.config import add_trainer_configs

CLASSES = ("cat", "dog", "emu")


def write_picture(path: Path, number: int = 0) -> Path:
    """Write a picture that differs from that of another number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (number % 256, number // 256, 90)).save(path)
    return path


def write_class_folders(folder: Path, each: int = 8, classes: Sequence[str] = CLASSES) -> Path:
    """Write `each` pictures into a folder per class."""
    for label, name in enumerate(classes):
        for number in range(each):
            write_picture(folder / name / f"{number:02d}.png", 100 * label + number)
    return folder


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(columns or rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Path and label of every picture in class folders, in no particular order."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.name[::-1])
    return [{"path": path.relative_to(folder).as_posix(), "label": path.parent.name} for path in paths]


def make_cfg(path: Path, **settings: Any) -> CfgNode:
    """The configuration of `--data PATH DATASET.KEY VALUE ...`."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.OUTPUT_DIR = "CustomImages", str(path), ""
    for key, value in settings.items():
        cfg.DATASET[key] = value
    return cfg


def load(path: Path, **settings: Any) -> Any:
    """CustomImages at a path, with keys of the node DATASET."""
    return build_dataset(make_cfg(path, **settings))


def sizes(data: Any) -> dict[str, int]:
    return {name: len(getattr(data, name) or ()) for name in ("train_x", "train_u", "val", "test")}

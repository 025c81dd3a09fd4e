"""Fake trees of questions about images, in the forms that users and authors write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from PIL import Image
from yacs.config import CfgNode

import datasets  # noqa: F401  (registers the data sets)
from trainers.config import add_trainer_configs


def write_images(folder: Path, names: Sequence[str]) -> Path:
    """Write a small picture under each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number % 256, 40, 90)).save(path)
    return folder


def write_json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return file


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def write_text(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    file.write_bytes("\n".join([*lines, ""]).encode(encoding))
    return file


def own_questions(root: Path) -> Path:
    """Write a folder like a user's: train, val and test tables about images of their own."""
    write_images(root / "images", [f"{part}{number}.png" for part in ("a", "b", "c") for number in range(4)])
    header = "image,question,answer,question_type"
    write_text(root / "train.csv", header, *(f"a{n}.png,What is it?,thing {n},object" for n in range(4)))
    write_text(root / "val.csv", header, "b0.png,How many?,2,count", "b1.png,Which colour?,red,colour")
    write_text(root / "test.csv", header, "c0.png,How many?,3,count")
    return root


def make_cfg(name: str, root: Path, **settings: Any) -> CfgNode:
    """The configuration of a run with keys of the node DATASET; upper-case ones of VQA are given as VQA_KEY."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    for key, value in settings.items():
        node, key = (cfg.DATASET.VQA, key.removeprefix("VQA_")) if key.startswith("VQA_") else (cfg.DATASET, key)
        node[key] = value
    return cfg


def load(root: Path, name: str = "VQAJson", **settings: Any) -> Any:
    """Build a data set of questions."""
    return build_dataset(make_cfg(name, root, **settings))


def facts(items: Sequence[Any]) -> list[tuple[str, str, Any]]:
    """Image name, question and references of items."""
    return [(Path(item.impath).name, item.extras["question"], json.loads(item.extras["answers"])) for item in items]

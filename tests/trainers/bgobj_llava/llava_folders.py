"""LLaVA folders on disk, as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_llavas import random_llava
from transformers import CLIPImageProcessor


def write_llava(folder: Path, **options: Any) -> Path:
    """Write a random LLaVA, its tokenizer and its image processor; `options` go to `random_llava`."""
    model, tokenizer = random_llava(**options)
    side = model.config.vision_config.image_size
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of a folder's config.json; `a__b` names a field of a part."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    for name, value in fields.items():
        *parts, last = name.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    file.write_text(json.dumps(config), encoding="utf-8")

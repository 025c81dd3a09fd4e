"""The captions that a run learns from, as the data set lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dassl.data.datasets import Datum

from trainers.viecap.words.captions import normalise_caption

NEEDED = ("captions", "image_id")  # extras of every data set of captions


@dataclass(frozen=True)
class TrainingCaptions:
    """Captions with the entities that came with them.

    Attributes:
        texts: Normalised, none blank, N of them.
        given: Entities of each, from the data; None if the data have none.
        n_blank: Blank captions that were left out.
    """

    texts: tuple[str, ...]
    given: tuple[tuple[str, ...], ...] | None
    n_blank: int = 0

    def __len__(self) -> int:
        return len(self.texts)


def extras_of(item: Datum) -> Mapping[str, Any]:
    """Return what the data set says about an item beside image and label."""
    return getattr(item, "extras", {})


def captions_of(item: Datum) -> list[str]:
    """Return the captions of an item, blank ones included; none for an item of another kind of data set."""
    return json.loads(extras_of(item).get("captions", "[]"))


def problems_with_items(items: Sequence[Datum], name: str) -> list[str]:
    """Return a message if items have no captions.

    Args:
        items: Of all splits.
        name: Of the data set.
    """
    missing = sorted({key for item in items for key in NEEDED if key not in extras_of(item)})
    if not missing:
        return []
    return [
        f"DATASET.NAME {name}: its items have no {', '.join(missing)}; ViECap learns and writes captions: expected "
        "CaptionFiles (your text, CSV or JSON), CocoCaption, Flickr30kCaption, or MiniScenes with DATASET.MINI_VIEW captions"
    ]


def collect_captions(items: Sequence[Datum], limit: int = 0) -> TrainingCaptions:
    """Return the captions of items in their order.

    Args:
        items: Of the training split.
        limit: How many at most, the first ones; 0 = all.
    """
    rows: list[tuple[str, tuple[str, ...] | None]] = []
    n_blank = 0
    for item in items:
        listed = extras_of(item).get("entities") or ""
        captions = captions_of(item)
        entities = json.loads(listed) if listed else [None] * len(captions)
        for caption, names in zip(captions, entities, strict=True):
            text = normalise_caption(caption)
            n_blank += not text
            if text:
                rows.append((text, None if names is None else tuple(names)))
        if limit and len(rows) >= limit:
            break
    rows = rows[:limit] if limit else rows
    complete = all(names is not None for _, names in rows)
    return TrainingCaptions(tuple(text for text, _ in rows), tuple(names for _, names in rows) if complete else None, n_blank)

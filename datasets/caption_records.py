"""Captions of a picture, or one caption without picture, as a file lists them, and what every such data set tells about them.

The extras of an item are texts: `captions` (JSON list), `entities` (JSON list with a list of names per caption, or "" where
nobody named any), `image_id`, `split_name` (NoCaps: the domain), `style` ("" = unknown or several).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.csv_rows import as_text
from datasets.row_faults import Fault

# Our names -> the names that published files use, the first one wins.
ALIASES = {
    "caption": ("caption", "captions", "text"),
    "image": ("image", "image_path", "impath", "file_name", "filename", "image_id"),
    "entities": ("entities",),
    "style": ("style",),
    "split": ("split",),
}

# `json.dumps` would make an encoder per call, which half a million rows feel.
_encode = json.JSONEncoder(ensure_ascii=False).encode

Entities = tuple[tuple[str, ...], ...]  # names per caption


@dataclass(frozen=True)
class CaptionRecord:
    """A row of a file of captions; the picture need not exist yet.

    Attributes:
        captions: Stripped texts; blank ones are dropped, and counted, when the rows are checked.
        origin: Where it is listed, for messages.
        images: Paths relative to an image folder; the first that exists is meant. () = text alone.
        image_id: The picture's name; "" for text alone.
        entities: Names per caption; None if nobody named any.
        split: As the file has it, or "".
        style: "" if nothing says.
        file: That lists it.
        repaired: Whether the row was malformed, and is understood nevertheless.
    """

    captions: tuple[str, ...]
    origin: str
    images: tuple[str, ...] = ()
    image_id: str = ""
    entities: Entities | None = None
    split: str = ""
    style: str = ""
    file: Path | None = None
    repaired: bool = False

    def extras(self, *, image_id: str, split_name: str) -> dict[str, str]:
        """Return the item's extras.

        Args:
            image_id: For a record without one.
            split_name: Part of the data set, or NoCaps' domain.
        """
        return {
            "captions": _encode(self.captions),
            "entities": "" if self.entities is None else _encode(self.entities),
            "image_id": self.image_id or image_id,
            "split_name": split_name,
            "style": self.style,
        }


CaptionReading = CaptionRecord | Fault


def read_cells(cells: Mapping[str, Any], names: Mapping[str, str], origin: str) -> CaptionReading:
    """Turn a row of a table, or a flat JSON object, into a record.

    Args:
        cells: Name -> text, number or list.
        names: Ours -> theirs, for what the file has.
        origin: For messages.
    """
    found = {ours: cells.get(theirs) for ours, theirs in names.items()}
    try:
        captions = read_captions(found["caption"])
        entities = read_entities(found.get("entities"), len(captions))
    except ValueError as error:
        return Fault(str(error), origin)
    image, split, style = (as_text(found.get(name)) for name in ("image", "split", "style"))
    return CaptionRecord(captions, origin, (image,) if image else (), image, entities, split, style)


def read_captions(value: Any) -> tuple[str, ...]:
    """Return the captions of a cell: one text, or a list of texts (or its JSON text); blank ones among them stay.

    Raises:
        ValueError: If it is something else.
    """
    value = _listed(value)
    captions = value if isinstance(value, list) else ["" if value is None else value]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError("captions that are neither text nor a list of texts")
    return tuple(caption.strip() for caption in captions)


def read_entities(value: Any, n_captions: int) -> Entities | None:
    """Return the entity names per caption; None if the cell is blank.

    Args:
        value: A list of lists, one per caption; of a single caption also a list of names, its JSON text, or names
            separated by commas.
        n_captions: Captions of the row.
    Raises:
        ValueError: If it is something else.
    """
    value = _listed(value)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = [name for part in value.split(",") if (name := part.strip())]
    if isinstance(value, list) and n_captions == 1 and all(isinstance(name, str) for name in value):
        value = [value]
    if not isinstance(value, list) or len(value) != n_captions or not all(map(_is_names, value)):
        raise ValueError("entities that are no list of names per caption")
    return tuple(tuple(name.strip() for name in names if name.strip()) for names in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _listed(value: Any) -> Any:
    """Return the list that a JSON text stands for, or the value itself."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value.strip() if isinstance(value, str) else value
    try:
        return json.loads(value)
    except ValueError:
        return value.strip()  # "[A dog] runs." is a caption


def drop_blank(record: CaptionRecord) -> tuple[CaptionRecord, int]:
    """Return the record without its blank captions, and how many there were."""
    kept = [number for number, caption in enumerate(record.captions) if caption]
    dropped = len(record.captions) - len(kept)
    if not dropped:
        return record, 0
    entities = None if record.entities is None else tuple(record.entities[number] for number in kept)
    return replace(record, captions=tuple(record.captions[number] for number in kept), entities=entities), dropped


def join_pictures(records: Iterable[CaptionRecord]) -> list[CaptionRecord]:
    """Join the rows of one picture, in order of first appearance; its style is theirs if they agree. Text alone stays alone."""
    groups: dict[object, list[CaptionRecord]] = {}
    for number, record in enumerate(records):
        groups.setdefault(record.images or number, []).append(record)
    return [rows[0] if len(rows) == 1 else _join(rows) for rows in groups.values()]


def _join(rows: Sequence[CaptionRecord]) -> CaptionRecord:
    styles, named = {row.style for row in rows}, any(row.entities is not None for row in rows)
    entities = tuple(names for row in rows for names in row.entities or ((),) * len(row.captions))
    return replace(
        rows[0],
        captions=tuple(caption for row in rows for caption in row.captions),
        entities=entities if named else None,
        style=rows[0].style if len(styles) == 1 else "",
        repaired=any(row.repaired for row in rows),
    )

"""The JSON forms in which captions are published: Karpathy's splits, COCO's annotations, plain lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.caption_records import CaptionReading, CaptionRecord, read_captions
from datasets.csv_rows import as_text
from datasets.row_faults import Fault


def read_content(file: Path, content: Any) -> list[CaptionReading]:
    """Return the rows of one of the forms.

    Args:
        file: For messages.
        content: Its value; a list holds texts only.
    Raises:
        ValueError: If it is another form.
    """
    if isinstance(content, list):
        return [CaptionRecord((text.strip(),), f"{file.name}, entry {number}") for number, text in enumerate(content, 1)]
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        images = content["images"]
        if isinstance(content.get("annotations"), list):
            return _read_annotations(file, images, content["annotations"])
        if any(isinstance(image, dict) and "sentences" in image for image in images):
            return [_read_karpathy(image, f"{file.name}, image {number}") for number, image in enumerate(images, 1)]
    elif isinstance(content, dict) and content:
        return [_read_pair(name, captions, f"{file.name}, {name}") for name, captions in content.items()]
    raise ValueError(
        f"{file}: expected picture -> captions, a list of captions or of objects with caption, COCO's images and annotations, "
        "or Karpathy's images with sentences"
    )


def _read_pair(name: str, captions: Any, origin: str) -> CaptionReading:
    try:
        return CaptionRecord(read_captions(captions), origin, (name,), name)
    except ValueError as error:
        return Fault(str(error), origin)


def _read_karpathy(image: Any, origin: str) -> CaptionReading:
    """Read a picture of `dataset_{coco,flickr30k,flickr8k}.json`; `filepath` is a folder inside the image folder."""
    if not isinstance(image, dict) or not as_text(image.get("filename")):
        return Fault("no filename", origin)
    sentences = image.get("sentences")
    rows = sentences if isinstance(sentences, list) else [None]
    if not all(isinstance(row, dict) and isinstance(row.get("raw"), str) for row in rows):
        return Fault("no sentences with raw", origin)
    name, folder = as_text(image["filename"]), as_text(image.get("filepath"))
    images = (f"{folder}/{name}", name) if folder else (name,)
    captions = tuple(row["raw"].strip() for row in rows)
    return CaptionRecord(captions, origin, images, name, split=as_text(image.get("split")))


def _read_annotations(file: Path, images: Sequence[Any], annotations: Sequence[Any]) -> list[CaptionReading]:
    """Read COCO's form; NoCaps adds `domain` to a picture."""
    captions: dict[Any, list[Any]] = {}
    for row in annotations:
        if not isinstance(row, dict) or "image_id" not in row:
            raise ValueError(f"{file}: expected annotations with image_id and caption, received {row!r:.60}")
        captions.setdefault(row["image_id"], []).append(row.get("caption"))
    rows = [
        _read_image(image, captions, f"{file.name}, image {number}")
        if isinstance(image, dict)
        else Fault("no JSON object", f"{file.name}, image {number}")
        for number, image in enumerate(images, 1)
    ]
    known = {image.get("id") for image in images if isinstance(image, dict)}
    unlisted = (f"{file.name}, image_id {number}" for number in captions if number not in known)
    return [*rows, *(Fault("captions of a picture that is not listed", origin) for origin in unlisted)]


def _read_image(image: Mapping[str, Any], captions: Mapping[Any, list[Any]], origin: str) -> CaptionReading:
    name = as_text(image.get("file_name"))
    if not name:
        return Fault("no file_name", origin)
    try:
        texts = read_captions(captions.get(image.get("id"), []))
    except ValueError as error:
        return Fault(str(error), origin)
    return CaptionRecord(texts, origin, (name,), name, split=as_text(image.get("split") or image.get("domain")))

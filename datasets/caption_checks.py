"""What is checked about captions before anything is learned from them, and what a run reports about them, all at once."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.caption_records import CaptionRecord, drop_blank, join_pictures
from datasets.data_folders import ImageFinder
from datasets.image_files import find_broken, some
from datasets.row_faults import Faults

logger = logging.getLogger(__name__)

TRAIN = "train"

Shown = tuple[Path | None, CaptionRecord]  # the picture, if there is one, and what is said of it


@dataclass
class Checked:
    """Usable rows.

    Attributes:
        parts: train, val or test -> rows; the pictures of val and test exist and can be decoded, those of train need not exist.
        report: Lines for the log.
    """

    parts: dict[str, list[Shown]] = field(default_factory=dict)
    report: list[str] = field(default_factory=list)


def check_parts(parts: Mapping[str, Sequence[CaptionRecord]], find: ImageFinder, faults: Faults, *, skip: bool) -> Checked:
    """Join the rows of each picture, drop blank captions, and find the pictures.

    Unusable are the rows that `faults` has already, and rows of val and test without a picture, with a missing or a corrupt
    one. Only reported are blank captions (dropped), captions that stand several times, repaired rows, and pictures that
    several parts share.

    Args:
        parts: Rows of train, val and test.
        find: Finds pictures.
        faults: Rows that could not be read; others are added.
        skip: Leave unusable rows out and report them, instead of stopping.
    Raises:
        ValueError: For all unusable rows.
    """
    total = sum(map(len, parts.values())) + faults.count
    checked, blanks = Checked(), []
    repaired = [record.origin for rows in parts.values() for record in rows if record.repaired]
    for part, rows in parts.items():
        kept = list(_without_blanks(join_pictures(rows), blanks))
        checked.parts[part] = [(find(row.images) if row.images else None, row) for row in kept]
        if part != TRAIN:
            checked.parts[part] = _with_pictures(checked.parts[part], faults)
    if faults and not skip:
        lines = "\n  ".join(faults.lines())
        remedy = "DATASET.CAPTION.MISSING skip leaves such rows out"
        raise ValueError(f"{faults.count} problems in {total:,} rows\n  {lines}\n{remedy}")
    if faults:  # an evaluation does not print the report, but what it leaves out changes its figures
        logger.warning("Left out: %d problems in %s rows\n  %s", faults.count, f"{total:,}", "\n  ".join(faults.lines()))
    checked.report += [_describe(part, rows) for part, rows in checked.parts.items()]
    checked.report += [f"left out, {line}" for line in faults.lines()]
    checked.report += [f"{what}: {len(rows)} ({some(rows)})" for what, rows in _lists(blanks, repaired).items() if rows]
    checked.report += [*_duplicates(checked.parts), *_shared(checked.parts)]
    return checked


def _lists(blanks: list[str], repaired: list[str]) -> dict[str, list[str]]:
    return {"empty captions dropped": blanks, "malformed rows repaired": repaired}


def _without_blanks(records: Iterable[CaptionRecord], blanks: list[str]) -> Iterable[CaptionRecord]:
    """Yield the records of which a caption is left, or that had none, which are for prediction; note the others' origins."""
    for record in records:
        kept, dropped = drop_blank(record)
        blanks += [record.origin] * dropped
        if kept.captions or not record.captions:
            yield kept


def _with_pictures(rows: Sequence[Shown], faults: Faults) -> list[Shown]:
    """Return the rows whose picture can be decoded to its end."""
    paths = [path for path, _ in rows if path is not None]
    if paths:
        logger.info("Reading %s pictures, to find those that are corrupt", f"{len(paths):,}")
    broken = find_broken(paths)
    usable = []
    for path, record in rows:
        if path is None:
            reason = "missing image" if record.images else "no image to caption"
            faults.add(reason, f"{record.origin}: {record.images[0]}" if record.images else record.origin)
        elif path in broken:
            faults.add("corrupt image", f"{record.origin}: {path.name}, {broken[path]}")
        else:
            usable.append((path, record))
    return usable


def _describe(part: str, rows: Sequence[Shown]) -> str:
    captions = sum(len(record.captions) for _, record in rows)
    named, present = sum(bool(record.images) for _, record in rows), sum(path is not None for path, _ in rows)
    absent = f", {named - present:,} of them not here, which text-only training does not need" if named > present else ""
    return f"{part}: {captions:,} captions, {named:,} pictures{absent}"


def _duplicates(parts: Mapping[str, Sequence[Shown]]) -> list[str]:
    lines = []
    for part, rows in parts.items():
        counts = Counter(caption for _, record in rows for caption in record.captions)
        again = sum(counts.values()) - len(counts)
        if again:
            text, most = counts.most_common(1)[0]
            lines.append(f"{part}: {again:,} captions repeat another one (kept), most often {text!r}, {most:,} times")
    return lines


def _shared(parts: Mapping[str, Sequence[Shown]]) -> list[str]:
    """Pictures are the same if they have the same names; train's need not exist."""
    names = {part: {record.images: record.image_id for _, record in rows if record.images} for part, rows in parts.items()}
    ordered = list(names)
    return [
        f"pictures shared by {first} and {second}: {len(both)} ({some(both)})"
        for number, first in enumerate(ordered)
        for second in ordered[number + 1 :]
        if (both := [name for images, name in names[first].items() if images in names[second]])
    ]

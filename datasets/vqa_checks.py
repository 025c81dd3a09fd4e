"""What is checked about questions before anything is learned from them, all of it reported at once."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clip_ext.style_names import StyleNames
from datasets.data_folders import ImageFinder
from datasets.image_files import find_broken
from datasets.row_faults import Fault, Faults
from datasets.vqa_records import Reading, Record

logger = logging.getLogger(__name__)

ORDER = ("train", "val", "test")

Asked = tuple[Path, Record]  # an image that exists, and a question about it


def check_parts(
    parts: Mapping[str, Sequence[Reading]], find: ImageFinder, *, skip: bool, styles: StyleNames | None = None
) -> dict[str, list[Asked]]:
    """Return the usable questions of every part, with their images.

    Unusable are: unreadable rows, missing and corrupt images, empty questions and answers, rows that stand twice in a part,
    images shared between parts (with `skip` they leave the earlier of train, val, test), and styles that `styles` does not
    know; those that it knows by another spelling get its own. A test part of which no row has an answer is unlabelled: its
    questions are for prediction.

    Args:
        parts: train, val or test -> what its file holds.
        find: Finds images.
        skip: Leave unusable rows out and log them, instead of stopping.
        styles: Allowed styles; None allows all.
    Raises:
        ValueError: For all unusable rows, or a part of which nothing is left.
    """
    faults = Faults()
    usable: dict[str, list[Asked]] = {}
    for part, readings in parts.items():
        may_lack = part == "test" and not any(isinstance(row, Record) and row.answers for row in readings)
        usable[part] = list(_find_images(_check_texts(readings, faults, styles, may_lack=may_lack), find, faults))
    usable = _drop(usable, _corrupt(usable, faults))
    usable = {part: list(_once(rows, faults)) for part, rows in usable.items()}
    usable = _without_shared(usable, faults)
    total = sum(map(len, parts.values()))
    if faults:
        summary = f"{faults.count} problems in {total:,} rows\n  " + "\n  ".join(faults.lines())
        if not skip:
            raise ValueError(f"{summary}\nDATASET.VQA.MISSING skip leaves such rows out")
        logger.warning("Left out: %s", summary)
    empty = [part for part, rows in usable.items() if not rows]
    if empty:
        raise ValueError(f"no question is left for {', '.join(empty)} (DATASET.VQA.MISSING skip)")
    return usable


def _check_texts(
    readings: Iterable[Reading], faults: Faults, styles: StyleNames | None, *, may_lack: bool
) -> Iterable[Record]:
    for row in readings:
        if isinstance(row, Fault):
            faults.add(row.reason, row.origin)
        elif not row.question:
            faults.add("empty question", row.origin)
        elif not row.answers and not may_lack:
            faults.add("empty answer", row.origin)
        elif styles is None or not row.style:
            yield row
        else:
            yield from _with_known_style(row, styles, faults)


def _with_known_style(record: Record, styles: StyleNames, faults: Faults) -> Iterable[Record]:
    try:
        number = styles.index(record.style)
    except ValueError as error:
        faults.add("unknown style", f"{record.origin}: {error}")
    else:
        yield replace(record, style=styles.names[number])


def _find_images(records: Iterable[Record], find: ImageFinder, faults: Faults) -> Iterable[Asked]:
    for record in records:
        path = find(record.images)
        if path is None:
            faults.add("missing image", f"{record.origin}: {record.images[0]}")
        else:
            yield path, record


def _corrupt(parts: Mapping[str, Sequence[Asked]], faults: Faults) -> Callable[[Asked], bool]:
    """Decode every image once and return which questions have one that cannot be read."""
    paths = {path: None for rows in parts.values() for path, _ in rows}
    logger.info("Reading %s images, to find those that are corrupt", f"{len(paths):,}")
    broken = find_broken(paths)
    for path, record in (row for rows in parts.values() for row in rows):
        if path in broken:
            faults.add("corrupt image", f"{record.origin}: {path.name}, {broken[path]}")
    return lambda row: row[0] in broken


def _drop(parts: Mapping[str, Sequence[Asked]], unwanted: Callable[[Asked], bool]) -> dict[str, list[Asked]]:
    return {part: [row for row in rows if not unwanted(row)] for part, rows in parts.items()}


def _once(rows: Iterable[Asked], faults: Faults) -> Iterable[Asked]:
    first: dict[tuple[object, ...], str] = {}
    for path, record in rows:
        origin = first.setdefault((path, record.question, record.answers, record.turns), record.origin)
        if origin == record.origin:
            yield path, record
        else:
            faults.add("same row twice", f"{record.origin} and {origin}")


def _without_shared(parts: Mapping[str, list[Asked]], faults: Faults) -> dict[str, list[Asked]]:
    """Leave images that a later part has too out of the earlier ones."""
    kept = dict(parts)
    ordered = [part for part in ORDER if part in parts]
    for number, part in enumerate(ordered):
        later = {path: other for other in reversed(ordered[number + 1 :]) for path, _ in parts[other]}
        for path, record in parts[part]:
            if path in later:
                faults.add("image shared between splits", f"{record.origin}: {path.name} is in {later[path]} too")
        kept[part] = [row for row in parts[part] if row[0] not in later]
    return kept

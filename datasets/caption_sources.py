"""Where the rows of a part of captions stand, and which of a file's rows are of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.caption_records import CaptionRecord

Parts = dict[str, list[CaptionRecord]]
Assigned = tuple[str, CaptionRecord]  # the part that a row names, or "" if it names none, and the row


@dataclass(frozen=True)
class Source:
    """Files of a part.

    Attributes:
        files: One; of Flickr30k's lists also the file with the split.
        own: Whether rows that name no split belong to this part.
        sure: Whether it was meant for this part, so that it must hold rows of it.
    """

    files: tuple[Path, ...]
    own: bool = True
    sure: bool = True


def rows_of(part: str, source: Source, rows: Iterable[Assigned]) -> list[CaptionRecord]:
    """Return the rows of a part."""
    return [record for named, record in rows if named == part or (not named and source.own)]


def unread_lines(sources: Mapping[str, Source], rows: Mapping[tuple[Path, ...], Sequence[Assigned]]) -> list[str]:
    """Return a line per file with rows of a part that has another file."""
    lines = []
    for files, assigned in rows.items():
        read = {part for part, source in sources.items() if source.files == files}
        others = Counter(part for part, _ in assigned if part and part not in read)
        lines += [f"{files[0].name}: {count:,} rows of {part} not read, it has another file" for part, count in others.items()]
    return lines


def choose_style(parts: Parts, style: str) -> Parts:
    """Return the rows of one style; all of them without a style.

    Args:
        parts: Rows by part.
        style: DATASET.CAPTION.STYLE.
    Raises:
        ValueError: If no row has it (names the styles that there are).
    """
    if not style:
        return parts
    known = sorted({record.style for rows in parts.values() for record in rows if record.style})
    if style not in known:
        found = ", ".join(known) or "nothing, no row has a style"
        raise ValueError(f"DATASET.CAPTION.STYLE is {style!r}; expected one of {found}")
    chosen = {part: [record for record in rows if record.style == style] for part, rows in parts.items()}
    return {part: rows for part, rows in chosen.items() if rows}

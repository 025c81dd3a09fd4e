"""Rows of files that cannot be used: collected by reason, to be reported together."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_ROWS = 10


@dataclass(frozen=True)
class Fault:
    """A row that no record could be made of.

    Attributes:
        reason: A few words, the same for all rows with this fault.
        origin: Where it stands.
    """

    reason: str
    origin: str


class Faults:
    """Rows that cannot be used, by reason."""

    def __init__(self) -> None:
        self._rows: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, reason: str, row: str) -> None:
        """Note a row."""
        self._rows.setdefault(reason, []).append(row)

    @property
    def count(self) -> int:
        """Rows noted."""
        return sum(map(len, self._rows.values()))

    def lines(self) -> list[str]:
        """Return a line per reason: how many rows, and the first ten."""
        return [f"{reason}: {len(rows)} ({_first(rows)})" for reason, rows in self._rows.items()]


def _first(rows: Sequence[str]) -> str:
    more = len(rows) - SHOWN_ROWS
    return "; ".join([*rows[:SHOWN_ROWS], *([f"and {more} more"] if more > 0 else [])])

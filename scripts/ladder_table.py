"""The table of BgObjLLaVA's ladder: accuracy against E0 question by question, tokens, hits and times."""
from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder_figures import count_flips, half_width, mean_and_spread, paired_difference, read_predictions
from tabulate import tabulate

HEADERS = (
    "rung", "meaning", "epoch", "accuracy %", "95 % +-", "minus E0, 95 % interval", "flips", "objects", "hits %",
    "TTFT cold", "TTFT warm", "FLOPs warm", "answers changed by the cache",
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """What the timed pass of one run says.

    Attributes:
        cold: Median seconds to the first token where the background was computed; None without such questions.
        warm: The same for hits.
        hits: Share of hits, percent.
        flops: Of a question with a hit, over those of the stock model; None without hits.
        answers: (image, question) -> answer.
    """

    cold: float | None
    warm: float | None
    hits: float
    flops: float | None
    answers: dict[tuple[str, str], str]


def read_timed(folder: Path) -> Timed:
    """Read the timed pass of one run."""
    rows = read_predictions(folder / "predictions.jsonl")
    warm = [row["ttft_s"] for row in rows if row.get("hit")]
    cold = [row.get("ttft_s", row.get("seconds_to_first")) for row in rows if not row.get("hit")]
    costs = folder / "costs.json"
    return Timed(
        statistics.median(cold) if cold else None,
        statistics.median(warm) if warm else None,
        100 * len(warm) / len(rows),
        json.loads(costs.read_text("utf-8"))["warm_over_stock"] if costs.is_file() else None,
        {(row["impath"], row["question"]): row["answer"] for row in rows},
    )


@dataclass(frozen=True)
class Cell:
    """One tested run: its predictions in the data set's order, and its timed pass."""

    seed: int
    rows: list[dict[str, Any]]
    timed: Timed | None

    @property
    def right(self) -> list[float]:
        """Normalised exact match per question."""
        return [row["scores"]["accuracy"] for row in self.rows]

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * statistics.fmean(self.right)

    @property
    def changed(self) -> int:
        """Questions that were answered otherwise in the timed pass, with the cache."""
        if self.timed is None:
            return 0
        answers = {(row["impath"], row["question"]): row["answer"] for row in self.rows}
        return sum(answers.get(key, answer) != answer for key, answer in self.timed.answers.items())

    def __str__(self) -> str:
        return f"{self.accuracy:.2f} % of {len(self.rows)} questions"


class TableOfRungs:
    """Collects runs and writes them as one table; the rung E0 is what all others are compared with."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, int], list[Cell]] = {}
        self.meanings: dict[str, str] = {}

    def add(self, name: str, meaning: str, seed: int, epoch: int, folder: Path, timed: Path | None) -> Cell:
        """Add one tested run; returns what was read."""
        cell = Cell(seed, read_predictions(folder / "predictions.jsonl"), read_timed(timed) if timed else None)
        self.cells.setdefault((name, epoch), []).append(cell)
        self.meanings[name] = meaning
        return cell

    def _reference(self) -> Cell | None:
        return next((cells[0] for (name, _), cells in self.cells.items() if name == "E0"), None)

    def line(self, name: str, epoch: int, cells: Sequence[Cell]) -> tuple[str, ...]:
        """Return one line of the table."""
        stock = self._reference()
        scores = [statistics.fmean(values) for values in zip(*(cell.right for cell in cells), strict=True)]
        against, flips = "", ""
        if stock is not None and name != "E0":
            mean, low, high = paired_difference(scores, stock.right)
            against = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            flips = f"{statistics.fmean(count_flips(cell.rows, stock.rows) for cell in cells):.0f}"
        objects = [row.get("n_obj") for cell in cells for row in cell.rows]
        known = [count for count in objects if count is not None]
        return (
            name, self.meanings[name], str(epoch or ""), mean_and_spread([cell.accuracy for cell in cells]),
            f"{half_width([score for cell in cells for score in cell.right][: len(scores)]):.2f}", against, flips,
            f"{statistics.fmean(known):.0f}" if known else "", *self._times(cells, stock),
        )  # fmt: skip

    @staticmethod
    def _times(cells: Sequence[Cell], stock: Cell | None) -> tuple[str, ...]:
        timed = [cell.timed for cell in cells if cell.timed is not None]
        if not timed:
            return ("", "", "", "", "")
        unit = stock.timed.cold if stock is not None and stock.timed is not None else None

        def ratio(values: Sequence[float | None], unit: float | None = unit) -> str:
            known = [value for value in values if value is not None]
            return f"{statistics.fmean(known) / unit:.2f}x" if known and unit else ""

        return (
            f"{statistics.fmean(each.hits for each in timed):.1f}",
            ratio([each.cold for each in timed]),
            ratio([each.warm for each in timed]),
            ratio([each.flops for each in timed], 1.0),
            str(sum(cell.changed for cell in cells)),
        )

    def write(self, output: Path) -> str:
        """Write table.md and table.json; returns the table."""
        lines = [self.line(name, epoch, cells) for (name, epoch), cells in self.cells.items()]
        text = tabulate(lines, headers=HEADERS, tablefmt="github", disable_numparse=True)
        seeds = sorted({cell.seed for cells in self.cells.values() for cell in cells})
        facts = [
            {"rung": name, "epoch": epoch, "seed": cell.seed, "accuracy": cell.accuracy, "questions": len(cell.rows)}
            for (name, epoch), cells in self.cells.items()
            for cell in cells
        ]
        (output / "table.md").write_text(f"Seeds {', '.join(map(str, seeds))}.\n\n{text}\n", encoding="utf-8")
        (output / "table.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return text

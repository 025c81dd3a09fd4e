"""What the tables of parts share: one run per row and seed in a folder of its own, not repeated once it is finished."""
from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from in_process_runs import ROOT, console, run_training
from tabulate import tabulate

from clip_ext.files import replacing

Scores = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser, *, config_file: str, output: str) -> None:
    """Add the flags that every table has.

    Args:
        parser: Of the command.
        config_file: Default recipe.
        output: Default folder of the runs.
    """
    add = parser.add_argument
    add("--config-file", default=config_file, help="recipe that all rows start from")
    add("--dataset-config-file", default="configs/datasets/mini_scenes.yaml")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--data", default="data", help="data root")
    add("--output", type=Path, default=Path(output))
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings for every row, behind --")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line with the flags of `add_arguments`."""
    args = parser.parse_args(argv)
    args.opts = [word for word in args.opts if word != "--"]
    if len(args.opts) % 2:
        parser.error(f"KEY VALUE pairs expected, got {' '.join(args.opts)}")
    return args


class AblationRuns:
    """Trains and tests rows, in folders of their own below the output folder.

    Args:
        args: With the flags of `add_arguments`.
        trainer: Registered name.
        rows: Row -> KEY VALUE words that it changes.
        read_scores: Folder of a finished run -> its scores, in percent.
        others: Row -> (seed, folder) -> None, for rows that are no training.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        trainer: str,
        rows: Mapping[str, Sequence[str]],
        read_scores: Callable[[Path], Scores],
        others: Mapping[str, Callable[[int, Path], None]] | None = None,
    ) -> None:
        self.args, self.trainer, self.rows, self.others = args, trainer, rows, dict(others or {})
        self.read_scores = read_scores
        self.output = (ROOT / args.output).absolute()

    def words(self, row: str, seed: int, folder: Path) -> list[str]:
        """The command line of `train.py`."""
        args = self.args
        words = ["--trainer", self.trainer, "--config-file", args.config_file]
        words += ["--dataset-config-file", args.dataset_config_file, "--root", args.data]
        return [*words, "--output-dir", str(folder), "--seed", str(seed), *args.opts, *self.rows.get(row, ())]

    def folder(self, row: str, seed: int) -> Path:
        """Where a row's run of a seed lies."""
        return self.output / row.replace(" ", "_").replace(",", "") / f"seed{seed}"

    def run(self, row: str, seed: int) -> Scores:
        """Return the test scores of a row and seed, in percent; trained and tested unless that is done."""
        folder = self.folder(row, seed)
        scores = folder / "scores.json"
        if not scores.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with console(folder):
                if row in self.others:
                    self.others[row](seed, folder)
                else:
                    run_training(self.words(row, seed, folder))
            with replacing(scores) as temporary:
                temporary.write_text(json.dumps(self.read_scores(folder)) + "\n", "utf-8")
        return json.loads(scores.read_text("utf-8"))

    def write(self, table: str) -> None:
        """Write table.md and show it."""
        with replacing(self.output / "table.md") as temporary:
            temporary.write_text(f"Seeds {', '.join(map(str, self.args.seeds))}.\n\n{table}\n", "utf-8")
        print(f"\n{table}\n\nRuns and table.md: {self.output}")


def spread(values: Sequence[float]) -> str:
    """Return mean and sample deviation."""
    return f"{statistics.mean(values):.2f}" + (f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def make_table(rows: Sequence[str], seeds: Sequence[int], run: Callable[[str, int], Scores], headers: Sequence[str]) -> str:
    """Run all rows and return the table in Markdown.

    Args:
        rows: In the order of the lines.
        seeds: One run of every row per seed.
        run: (row, seed) -> scores.
        headers: Which scores to show, in the order of the columns; one that a row lacks stays blank.
    """
    lines = []
    for row in rows:
        scores = [run(row, seed) for seed in seeds]
        lines.append([row, *(spread([each[name] for each in scores]) if name in scores[0] else "" for name in headers)])
        print(" | ".join(lines[-1]), flush=True)
    return tabulate(lines, headers=["row", *headers], tablefmt="pipe", disable_numparse=True)

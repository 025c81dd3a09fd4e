"""Rows of a table of results: each one is a `train.py` command, run once per seed in a folder of its own.

Shared by quickstart.py, compare_trainers.py and ablate_stages.py. A finished run is not repeated, so an interrupted table
goes on where it stopped.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
DATASET_CONFIG = "configs/datasets/handwritten_digits.yaml"
SECONDS_FILE = "seconds.json"


@dataclass(frozen=True)
class Row:
    """One line of the table: a trainer, its config file and the settings that make the row.

    Attributes:
        title: First cell of the line.
        trainer: Registered name.
        folder: Below configs/trainers.
        pairs: KEY VALUE words; a key that starts with "." is below the trainer's node.
        config: Name of the file in `folder`, without suffix.
    """

    title: str
    trainer: str
    folder: str
    pairs: tuple[str, ...] = ()
    config: str = "tiny12"

    @property
    def slug(self) -> str:
        """Folder name of the row's runs."""
        return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in self.title.lower())

    @property
    def words(self) -> list[str]:
        """The KEY VALUE words with full keys."""
        return [f"TRAINER.{self.trainer.upper()}{word}" if word.startswith(".") else word for word in self.pairs]


@dataclass
class Measured:
    """Test accuracies in percent and wall seconds of one row, one entry per seed; validation where it was asked for."""

    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)


def run_row(row: Row, seed: int, output: Path, data: str, *, with_val: bool = False) -> tuple[float, float, float | None]:
    """Train and test one row with one seed, unless that is done.

    Args:
        row: What to run.
        seed: Its seed.
        output: Folder of the table; the run lies in `<slug>/seed<seed>` below it.
        data: Data root.
        with_val: Also measure the final weights on the validation split, by which a default may be chosen.
    Returns:
        Test accuracy in percent, wall seconds of the training command, validation accuracy or None.
    """
    folder = output / row.slug / f"seed{seed}"
    command = [sys.executable, "train.py", "--trainer", row.trainer, "--dataset-config-file", DATASET_CONFIG]
    command += ["--config-file", f"configs/trainers/{row.folder}/{row.config}.yaml", "--root", data]
    command += ["--output-dir", str(folder), "--seed", str(seed)]
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_finished(folder):
        started = time.perf_counter()
        _call([*command, *row.words], folder / "console.txt", row.title)
        (folder / SECONDS_FILE).write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")
    if with_val and "val" not in _results(folder):
        _call([*command, "--eval-only", *_final_weights(folder), *row.words, "TEST.SPLIT", "val"], folder / "console_val.txt", row.title)
    results = _results(folder)
    seconds = json.loads((folder / SECONDS_FILE).read_text("utf-8"))
    return results["test"]["accuracy"], seconds, results["val"]["accuracy"] if with_val else None


def _call(command: Sequence[str], console_file: Path, title: str) -> None:
    # Tensors this narrow gain nothing from a second thread, and two threads wait for each other on a busy machine.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with open(console_file, "w", encoding="utf-8") as console:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=console, stderr=subprocess.STDOUT).returncode
    if code:
        tail = console_file.read_text("utf-8").splitlines()[-15:]
        sys.exit("\n".join([*tail, f"{title} failed (exit {code}); the whole output is in {console_file}"]))


def _is_finished(folder: Path) -> bool:
    record = folder / "run.json"
    status = json.loads(record.read_text("utf-8"))["status"] if record.is_file() else "absent"
    return status == "finished" and (folder / SECONDS_FILE).is_file() and "test" in _results(folder)


def _final_weights(folder: Path) -> list[str]:
    """Return the flags that load a run's last weights; none for a run that trained nothing."""
    pointers = [file.read_text("utf-8").strip() for file in folder.glob("*/checkpoint")]
    return ["--model-dir", str(folder), "--load-epoch", pointers[0].rpartition("-")[2]] if pointers else []


def _results(folder: Path) -> dict[str, dict[str, float]]:
    file = folder / "results.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def run_table(
    rows: Iterable[Row], seeds: Sequence[int], output: Path, data: str, *, with_val: bool = False, jobs: int = 1
) -> dict[str, Measured]:
    """Run every row with every seed, seed by seed, and say what came out.

    Args:
        rows: Lines of the table; the first is the baseline.
        seeds: One run of every row per seed.
        output: Folder of the table.
        data: Data root.
        with_val: See `run_row`.
        jobs: Runs at a time.
    Returns:
        Title -> measured figures, in the order of the rows.
    """
    tasks = [(row, seed) for seed in seeds for row in rows]

    def run(task: tuple[Row, int]) -> tuple[float, float, float | None]:
        row, seed = task
        print(f"{row.title}, seed {seed} ...", flush=True)
        accuracy, seconds, val = run_row(row, seed, output, data, with_val=with_val)
        print(f"    {row.title}, seed {seed}: {accuracy:.2f} % on the test split after {seconds:.0f} s", flush=True)
        return accuracy, seconds, val

    measured = {row.title: Measured() for row in rows}
    pool = ThreadPoolExecutor(jobs)
    try:
        for (row, _), (accuracy, seconds, val) in zip(tasks, pool.map(run, tasks), strict=True):
            cell = measured[row.title]
            cell.accuracy.append(accuracy)
            cell.seconds.append(seconds)
            cell.val += [] if val is None else [val]
    finally:
        pool.shutdown(cancel_futures=True)  # after a failed row the others need not start
    return measured


def format_table(measured: dict[str, Measured]) -> str:
    """Accuracy with gain over the first row, and seconds; mean and sample deviation where there are several seeds."""
    baseline = statistics.fmean(next(iter(measured.values())).accuracy)
    with_val = any(row.val for row in measured.values())
    lines = []
    for title, row in measured.items():
        gain = f"{statistics.fmean(row.accuracy) - baseline:+.2f}"
        val = [_mean_and_spread(row.val)] if with_val else []
        lines.append((title, *val, _mean_and_spread(row.accuracy), gain, f"{statistics.fmean(row.seconds):.0f}"))
    headers = ("", *(["val accuracy %"] if with_val else []), "test accuracy %", "gain", "seconds")
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def build_parser(description: str, output: str) -> argparse.ArgumentParser:
    """Return the command line that scripts with a table share; `output` is the default folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every row per seed")
    parser.add_argument("--data", default="data", help="data root; the digits are written there once")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of the runs and of table.md")
    parser.add_argument("--no-val", dest="with_val", action="store_false", help="leave out the validation column")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    return parser


def make_table(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Run the rows as the parsed command line says, print the table and write it as table.md."""
    output = (ROOT / args.output).absolute()
    measured = run_table(rows, args.seeds, output, args.data, with_val=args.with_val, jobs=args.jobs)
    table = format_table(measured)
    (output / "table.md").write_text(f"Seeds {', '.join(map(str, args.seeds))}.\n\n{table}\n", encoding="utf-8")
    print(f"\n{table}\n\nRuns and table.md: {output}")

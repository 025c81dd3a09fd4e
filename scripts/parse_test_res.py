"""Mean and spread of test results over the runs (seeds) in a folder, as CoOp's script of this name prints them.

    python scripts/parse_test_res.py output/handwritten_digits/LaFTer/tiny12
    python scripts/parse_test_res.py --base output/base2new/train_base/... --new output/base2new/test_new/...

A run is a sub-folder with a log.txt. Its result is the last `* accuracy: 12.3%` after the line `Finish training` (with
--test-log: after `=> result`, for logs that only evaluate). Where results.json holds the same figure in full precision, that
one is taken.
Folders without a log, and runs that have not finished, are reported and left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clip_ext.console import accept_any_text  # noqa: E402

TRAINED, TESTED = "Finish training", "=> result"
SPLIT = re.compile(r"Evaluate on the \*(\w+)\* set")
ROUNDING = 0.0501  # of a figure that is logged with one decimal


@dataclass(frozen=True)
class Query:
    """What to look for.

    Attributes:
        keyword: Name of the metric, as in the log and in results.json.
        signal: Line that has to come before it.
        ci95: Whether the spread is a 95% confidence interval instead of the standard deviation.
    """

    keyword: str
    signal: str
    ci95: bool


@dataclass(frozen=True)
class Result:
    """Figure of one run, and its unit (% or nothing)."""

    file: Path
    value: float
    unit: str


@dataclass(frozen=True)
class Summary:
    """Mean and spread over runs."""

    mean: float
    spread: float
    unit: str


def read_log(path: Path, query: Query) -> tuple[float | None, str] | None:
    """Return (last figure after the signal or None, split it was measured on), or None if the signal never came."""
    figure = re.compile(rf"\* {re.escape(query.keyword)}: ([\.\deE+-]+)%")
    signalled, value, split, measured_on = False, None, "test", "test"
    for line in path.read_text("utf-8", errors="replace").splitlines():
        line = line.strip()
        signalled |= line == query.signal
        if match := SPLIT.search(line):
            split = match[1]
        if signalled and (match := figure.search(line)):
            value, measured_on = float(match[1]), split
    return (value, measured_on if value is not None else split) if signalled else None


def read_json(path: Path) -> dict:
    """Return what a JSON file holds, or nothing if there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def read_run(folder: Path, query: Query) -> Result | str:
    """Return the result of one run, or why it has none.

    A resumed run has several logs; the last one with a result counts.
    """
    logs = sorted(folder.glob("log.txt*"))
    if not logs:
        return "no log.txt"
    status = read_json(folder / "run.json").get("status", "finished")
    if status != "finished":
        return f"not finished: run.json says {status}"
    found = [(log, *reading) for log in logs if (reading := read_log(log, query))]
    if not found:
        hint = " (--test-log reads runs that only test)" if query.signal == TRAINED else ""
        return f"not finished: no line '{query.signal}'{hint}"
    log, logged, split = next((entry for entry in reversed(found) if entry[1] is not None), found[-1])
    exact = read_json(folder / "results.json").get(split, {}).get(query.keyword)
    if logged is None:
        return f"no '* {query.keyword}: ...%'" if exact is None else Result(folder / "results.json", exact, "")
    if exact is not None and abs(exact - logged) > ROUNDING:
        print(f"{folder}: results.json has {exact:.2f}, of another test than {log.name} ({logged}%), which counts")
        exact = None
    return Result(log, logged if exact is None else exact, "%")


def summarise(directory: Path, query: Query) -> Summary:
    """Print every run of a folder, then mean and spread, and return these.

    Raises:
        LookupError: If the folder is missing or no run in it has a result.
    """
    if not directory.is_dir():
        raise LookupError(f"there is no folder {directory}")
    print(f"Parsing files in {directory}")
    results = []
    for folder in folders_in(directory):
        result = read_run(folder, query)
        if isinstance(result, Result):
            results.append(result)
            print(f"file: {result.file}. {query.keyword}: {result.value:.2f}{result.unit}. ")
        else:
            print(f"left out: {folder}: {result}")
    if not results:
        raise LookupError(f"Nothing found in {directory}")
    values = [result.value for result in results]
    spread = statistics.pstdev(values)
    if query.ci95:
        spread = 1.96 * spread / math.sqrt(len(values))
    summary = Summary(statistics.fmean(values), spread, results[0].unit)
    print(f"===\nSummary of directory: {directory}")
    print(f"* {query.keyword}: {summary.mean:.2f}{summary.unit} +- {summary.spread:.2f}{summary.unit}\n===")
    return summary


def folders_in(directory: Path) -> list[Path]:
    """Return the sub-folders that are not hidden, sorted by name."""
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def summarise_experiments(directory: Path, query: Query) -> None:
    """Summarise every sub-folder of a folder, then print the mean of the means.

    Raises:
        LookupError: If no sub-folder has a result.
    """
    summaries = []
    for folder in folders_in(directory):
        try:
            summaries.append(summarise(folder, query))
        except LookupError as error:
            print(f"left out: {error}")
    if not summaries:
        raise LookupError(f"Nothing found below {directory}")
    mean = statistics.fmean(summary.mean for summary in summaries)
    print(f"Average performance\n* {query.keyword}: {mean:.2f}{summaries[0].unit}")


def summarise_base_to_new(base: Path, new: Path, query: Query) -> None:
    """Print the means on base and on new classes and their harmonic mean H; runs on new classes only test."""
    of_base, of_new = summarise(base, query), summarise(new, replace(query, signal=TESTED))
    total = of_base.mean + of_new.mean
    harmonic = 2 * of_base.mean * of_new.mean / total if total else 0.0
    for name, value in (("base", of_base.mean), ("new", of_new.mean), ("H", harmonic)):
        print(f"* {name}: {value:.2f}{of_base.unit}")


def main(argv: list[str]) -> None:
    """Run one command line."""
    accept_any_text()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="folder with one sub-folder per run")
    parser.add_argument("--ci95", action="store_true", help="95%% confidence interval instead of standard deviation")
    parser.add_argument("--test-log", action="store_true", help="logs of runs that only test")
    parser.add_argument("--multi-exp", action="store_true", help="DIRECTORY holds experiments, which hold runs")
    parser.add_argument("--keyword", default="accuracy", help="metric to extract (default: accuracy)")
    parser.add_argument("--base", type=Path, metavar="DIR", help="runs on base classes, with --new")
    parser.add_argument("--new", type=Path, metavar="DIR", help="tests on new classes, with --base")
    args = parser.parse_args(argv)
    query = Query(args.keyword, TESTED if args.test_log else TRAINED, args.ci95)
    if (args.base is None) != (args.new is None) or (args.base is None) == (args.directory is None):
        parser.error("give either DIRECTORY or both --base and --new")
    try:
        if args.base is not None:
            summarise_base_to_new(args.base, args.new, query)
        elif args.multi_exp:
            summarise_experiments(args.directory, query)
        else:
            summarise(args.directory, query)
    except LookupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The main job on the miniature world: four rows of one table, from nothing to label-free tuning.

Runs `train.py` for the zero-shot baseline, the text-trained classifier, LaFTer and HybridCascadeLaFTer on real handwritten
digits, then prints accuracies and seconds, and writes them with the plots' places into report.md. Called by quickstart.sh/.bat.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
DATASET_CONFIG = "configs/datasets/handwritten_digits.yaml"
NEXT_STEPS = """Next, with real weights (fetched once) and your own data set file:
  python train.py --trainer HybridCascadeLaFTer --config-file configs/trainers/hybrid_cascade_lafter/vit_b32.yaml \\
      --dataset-config-file configs/datasets/YOUR_DATA.yaml --root DATA --output-dir output/first --seed 1"""


@dataclass(frozen=True)
class Row:
    """One line of the table: a trainer, its config folder and the settings that make the row."""

    title: str
    trainer: str
    folder: str
    pairs: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Folder name of the row's runs."""
        return self.title.lower().replace(" ", "_")


ROWS = (
    Row("zero-shot", "ZeroshotCLIP", "zeroshot_clip"),
    Row("text classifier", "LaFTer", "lafter", ("TRAINER.LAFTER.PHASE", "text_only")),
    Row("LaFTer", "LaFTer", "lafter"),
    Row("HybridCascadeLaFTer", "HybridCascadeLaFTer", "hybrid_cascade_lafter"),
)


@dataclass
class Measured:
    """Test accuracies in percent and wall seconds of one row, one entry per seed."""

    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run_row(row: Row, seed: int, output: Path, data: str) -> tuple[float, float]:
    """Train and test one row with one seed; returns test accuracy in percent and wall seconds of the whole command."""
    folder = output / row.slug / f"seed{seed}"
    command = [sys.executable, "train.py", "--trainer", row.trainer, "--dataset-config-file", DATASET_CONFIG]
    command += ["--config-file", f"configs/trainers/{row.folder}/tiny12.yaml", "--root", data]
    command += ["--output-dir", str(folder), "--seed", str(seed), "--resume", "never", *row.pairs]
    # Tensors this narrow gain nothing from a second thread, and two threads wait for each other on a busy machine.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    started = time.perf_counter()
    folder.mkdir(parents=True)
    with open(folder / "console.txt", "w", encoding="utf-8") as console:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=console, stderr=subprocess.STDOUT).returncode
    seconds = time.perf_counter() - started
    if code:
        tail = (folder / "console.txt").read_text("utf-8").splitlines()[-15:]
        sys.exit("\n".join([*tail, f"{row.title} failed (exit {code}); the whole output is in {folder / 'console.txt'}"]))
    results = json.loads((folder / "results.json").read_text("utf-8"))
    return results["test"]["accuracy"], seconds


def format_table(measured: dict[str, Measured]) -> str:
    """Accuracy with gain over the first row, and seconds; mean and sample deviation where there are several seeds."""
    baseline = next(iter(measured.values())).accuracy
    lines = []
    for title, row in measured.items():
        mean = statistics.fmean(row.accuracy)
        spread = f" +- {statistics.stdev(row.accuracy):.2f}" if len(row.accuracy) > 1 else ""
        gain = mean - statistics.fmean(baseline)
        lines.append((title, f"{mean:.2f}{spread}", f"{gain:+.2f}", f"{statistics.fmean(row.seconds):.0f}"))
    return tabulate(lines, headers=("", "test accuracy %", "gain", "seconds"), tablefmt="github", disable_numparse=True)


def write_report(output: Path, table: str, seeds: list[int]) -> Path:
    """Write table and pictures as Markdown; returns the file."""
    lines = ["# Label-free learning of handwritten digits", "", f"Seeds {', '.join(map(str, seeds))}.", "", table, ""]
    for picture in sorted(output.glob(f"*/seed{seeds[0]}/**/*.png")):
        relative = picture.relative_to(output).as_posix()
        lines += [f"![{relative}]({relative})", ""]
    report = output / "report.md"
    report.write_text("\n".join(lines), encoding="utf-8")
    return report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every row per seed")
    parser.add_argument("--data", default="data", help="data root; the digits are written there once")
    parser.add_argument("--output", type=Path, help="new folder for the runs (default: output/quickstart/<time>)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output = (args.output or ROOT / "output" / "quickstart" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if output.exists() and any(output.iterdir()):
        sys.exit(f"--output {output} is not empty; every quickstart writes into a folder of its own")
    measured = {row.title: Measured() for row in ROWS}
    for seed in args.seeds:
        for row in ROWS:
            print(f"{row.title}, seed {seed} ...", flush=True)
            accuracy, seconds = run_row(row, seed, output, args.data)
            measured[row.title].accuracy.append(accuracy)
            measured[row.title].seconds.append(seconds)
            print(f"    {accuracy:.2f} % on the test split after {seconds:.0f} s", flush=True)
    table = format_table(measured)
    report = write_report(output, table, args.seeds)
    print(f"\n{table}\n\nPlots and logs: {report}\n\n{NEXT_STEPS}")


if __name__ == "__main__":
    main()

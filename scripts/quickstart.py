"""The main job on the miniature world: four rows of one table, from nothing to label-free tuning.

Runs `train.py` for the zero-shot baseline, the text-trained classifier, LaFTer and HybridCascadeLaFTer on real handwritten
digits, then prints accuracies and seconds, and writes them with the plots' places into report.md. Called by quickstart.sh/.bat.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from row_runs import ROOT, Row, format_table, run_table

NEXT_STEPS = """Next, with real weights (fetched once) and a folder of your own images (docs/CUSTOM_DATA.md):
  python train.py --trainer HybridCascadeLaFTer --config-file configs/trainers/hybrid_cascade_lafter/vit_b32.yaml \\
      --data YOUR_IMAGES --output-dir output/first --seed 1
  python predict.py --model-dir output/first --input YOUR_IMAGES --output predictions.csv"""

ROWS = (
    Row("zero-shot", "ZeroshotCLIP", "zeroshot_clip"),
    Row("text classifier", "LaFTer", "lafter", (".PHASE", "text_only")),
    Row("LaFTer", "LaFTer", "lafter"),
    Row("HybridCascadeLaFTer", "HybridCascadeLaFTer", "hybrid_cascade_lafter"),
)


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
    measured = run_table(ROWS, args.seeds, output, args.data)
    table = format_table(measured)
    report = write_report(output, table, args.seeds)
    print(f"\n{table}\n\nPlots and logs: {report}\n\n{NEXT_STEPS}")


if __name__ == "__main__":
    main()

"""All label-free trainers and their variants on HandwrittenDigits: one table over several seeds.

    python scripts/compare_trainers.py --seeds 1 2 3 4 5 --output output/compare

Rows take the `tiny12` presets and change only what their title says. Two rows learn from labels, as their design did: they say
so. An interrupted table goes on where it stopped; the defaults were chosen by the validation column, not by the test column.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from row_runs import ROOT, Row, format_table, run_table

LAFTER = ("LaFTer", "lafter")
MULTI = ("MultiLayerLaFTer", "multilayer_lafter")
HYBRID = ("HybridCascadeLaFTer", "hybrid_cascade_lafter")

# A teacher that labels batch by batch can neither align nor rank the whole set.
ONLINE = (".DIST_ALIGN", "none", ".KEEP_SHARE", "1.0")
# `original` as first stated, on this world: its file, the miniature tower, glyph views; digits have no emotion ring.
ORIGINAL = (
    "MODEL.BACKBONE.NAME", "tiny12", "DATALOADER.NUM_WORKERS", "0", ".DUAL.ENABLED", "False", ".TEXT.EPOCHS", "2000",
    ".AUGMENT_RECIPE", "glyphs", ".CACHE_IMAGES", "ram",
)  # fmt: skip
# The same design, learned from pseudo-labels with the recipe of the other rows.
ORIGINAL_DESIGN = (".NGA_OFFSET", "1", ".NGA_SIGMA_MIN", "0.05", ".FUSION_INIT", "uniform", ".CONS_DETACH", "False")

CASCADECLIP = (
    ".STAGE_SCHEME", "cascadeclip", ".NGA_MODE", "free", ".READOUT", "stage", ".STAGE_CLASSIFIER", "copy", ".FUSION", "sum",
)  # fmt: skip

ROWS = (
    Row("zero-shot", "ZeroshotCLIP", "zeroshot_clip"),
    Row("text classifier", *LAFTER, (".PHASE", "text_only")),
    Row("LaFTer, teacher self, aligned", *LAFTER),
    Row("LaFTer, teacher self", *LAFTER, (".DIST_ALIGN", "none")),
    Row("LaFTer, teacher frozen, aligned", *LAFTER, (".TEACHER", "frozen")),
    Row("LaFTer, teacher frozen", *LAFTER, (".TEACHER", "frozen", ".DIST_ALIGN", "none")),
    Row("LaFTer, teacher shared", *LAFTER, (".TEACHER", "shared", *ONLINE)),
    Row("LaFTer, teacher ema", *LAFTER, (".TEACHER", "ema", *ONLINE)),
    Row("MultiLayer, deep", *MULTI),
    Row("MultiLayer, replace", *MULTI, (".PROMPT_MODE", "replace")),
    Row("MultiLayer, accumulate", *MULTI, (".PROMPT_MODE", "accumulate")),
    Row("MultiLayer, replace, not progressive", *MULTI, (".PROMPT_MODE", "replace", ".PROGRESSIVE", "False")),
    Row("MultiLayer, original's design", *MULTI, (".PROMPT_MODE", "accumulate", *ORIGINAL_DESIGN)),
    Row("MultiLayer, original (reads labels)", *MULTI, (*ORIGINAL, ".PROMPT_TOKENS", "3"), "original"),
    Row("Hybrid", *HYBRID),
    Row("Hybrid, keep_last", *HYBRID, (".STAGE_SCHEME", "keep_last")),
    Row("Hybrid, cascadeclip", *HYBRID, CASCADECLIP),
    Row("Hybrid, original's design", *HYBRID, ORIGINAL_DESIGN),
    Row("Hybrid, original (reads labels)", *HYBRID, (*ORIGINAL, ".PROMPT_TOKENS", "8"), "original"),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every row per seed")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose title it finds, beside the baseline")
    parser.add_argument("--data", default="data", help="data root; the digits are written there once")
    parser.add_argument("--output", type=Path, default=Path("output/compare"), help="folder of the runs and of table.md")
    parser.add_argument("--no-val", dest="with_val", action="store_false", help="leave out the validation column")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows = [row for row in ROWS if row is ROWS[0] or re.search(args.rows, row.title)]
    if len(rows) == 1:
        titles = "\n  ".join(row.title for row in ROWS)
        sys.exit(f"--rows {args.rows!r} finds no row among\n  {titles}")
    output = (ROOT / args.output).absolute()
    measured = run_table(rows, args.seeds, output, args.data, with_val=args.with_val, jobs=args.jobs)
    table = format_table(measured)
    (output / "table.md").write_text(f"Seeds {', '.join(map(str, args.seeds))}.\n\n{table}\n", encoding="utf-8")
    print(f"\n{table}\n\nRuns and table.md: {output}")


if __name__ == "__main__":
    main()

"""All label-free trainers and their variants on HandwrittenDigits: one table over several seeds.

    python scripts/compare_trainers.py --seeds 1 2 3 4 5 --output output/compare

Rows take the `tiny12` presets and change only what their title says. Two rows learn from labels, as their design did: they say
so. An interrupted table goes on where it stopped; the defaults were chosen by the validation column, not by the test column.
"""
from __future__ import annotations

import re
import sys

from row_runs import Row, build_parser, make_table

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


def main() -> None:
    parser = build_parser(__doc__, "output/compare")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose title it finds, beside the baseline")
    args = parser.parse_args()
    rows = [row for row in ROWS if row is ROWS[0] or re.search(args.rows, row.title)]
    if len(rows) == 1:
        titles = "\n  ".join(row.title for row in ROWS)
        sys.exit(f"--rows {args.rows!r} finds no row among\n  {titles}")
    make_table(rows, args)


if __name__ == "__main__":
    main()

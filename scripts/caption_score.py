"""Score a file of generated captions: CIDEr, BLEU-1 to -4, ROUGE-L; METEOR and SPICE with --java.

    python scripts/caption_score.py --result_file_path OUT/predictions/coco_generated_captions.json
    python scripts/caption_score.py --result_file_path FILE --java meteor

The file is a JSON list of rows `split`, `image_name`, `captions` (references) and `prediction`, as evaluation writes it here
and in the original ViECap. Nothing else is needed: no model, no data set. If the rows are of several splits (`in_domain`, ...
of NoCaps), each is scored alone too. --java needs Java and the package pycocoevalcap (extra `java`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clip_ext.console import accept_any_text  # noqa: E402
from trainers.evaluators import java_metrics  # noqa: E402
from trainers.evaluators.caption_rows import read_rows, score_rows  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    accept_any_text()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result_file_path", type=Path, required=True, metavar="FILE.json", help="captions with references")
    parser.add_argument("--java", nargs="+", default=(), metavar="METRIC", help=f"also {', '.join(java_metrics.METRICS)}")
    options = parser.parse_args(arguments)
    problems = java_metrics.find_problems(options.java, "--java")
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    try:
        rows = read_rows(options.result_file_path.expanduser())
        results = score_rows(rows, options.java)
    except (OSError, ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"=> result\n* total: {len(rows):,}")
    for name, value in results.items():
        print(f"* {name}: {value:.2f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())

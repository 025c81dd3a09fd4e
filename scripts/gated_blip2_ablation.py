"""What style gates are worth on the miniature world: presets, gates and sources of style in one table.

    python scripts/gated_blip2_ablation.py --seeds 1 2 3

Every row trains and tests as `train.py` does and changes one thing. `style` is the accuracy on questions for the style,
`others` on all the rest; the style gap is what the accuracy on style questions loses when the test pictures swap their styles.
Finished runs are not repeated. KEY VALUE pairs behind -- go to every row.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ablation_runs import AblationRuns, add_arguments, make_table, parse
from in_process_runs import trained

from trainers.evaluators.vqa import FILE_NAME

NODE = "TRAINER.GATEDBLIP2"
FROZEN, PROJECTION = "frozen", "projection"
# Row -> what it changes.
ROWS: dict[str, tuple[str, ...]] = {
    FROZEN: (f"{NODE}.PRESET", "frozen"),
    PROJECTION: (f"{NODE}.PRESET", "projection"),
    # Pre-trained parts have a tenth of the rate.
    "projection, rate times ten": (f"{NODE}.PRESET", "projection", "OPTIM.LR", "0.01"),
    "gates_proj": (),
    "gates": (f"{NODE}.PRESET", "gates"),
    "gates_xattn": (f"{NODE}.PRESET", "gates_xattn"),
    "qformer": (f"{NODE}.PRESET", "qformer"),
    "qformer, learned constant": (f"{NODE}.PRESET", "qformer", f"{NODE}.STYLE.SOURCE", "static"),
    "original_live": (f"{NODE}.PRESET", "original_live"),
    "gates_proj, gates per head": (f"{NODE}.GATE.GRANULARITY", "head"),
    "gates_proj, one gate": (f"{NODE}.GATE.GRANULARITY", "scalar"),
    "gates_proj, keys only": (f"{NODE}.GATE.SITES", "k"),
    "gates_proj, no shift": (f"{NODE}.GATE.BETA_V", "False"),
    "gates_proj, question": (f"{NODE}.GATE.QUESTION", "True"),
    "gates_proj, known styles": (f"{NODE}.STYLE.SOURCE", "label"),
    "gates_proj, learned constant": (f"{NODE}.STYLE.SOURCE", "static"),
    "gates_proj, shuffled styles": (f"{NODE}.STYLE.SOURCE", "shuffled"),
}
SHORT = (FROZEN, PROJECTION, "projection, rate times ten", "gates_proj", "gates_proj, learned constant",
         "gates_proj, shuffled styles")  # fmt: skip
STYLE, OTHERS, GAP = "style", "others", "style gap"


def read_scores(folder: Path) -> dict[str, float]:
    """Return the test scores of a finished run: accuracies in percent; the style gap in points, of rows that have one."""
    rows = [json.loads(line) for line in (folder / FILE_NAME).read_text("utf-8").splitlines()]
    hits: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        hits[row["question_type"] == "style"].append(row["scores"]["accuracy"])
    results = json.loads((folder / "results.json").read_text("utf-8"))["test"]
    gap = {GAP: results["style_gap/style"]} if "style_gap/style" in results else {}
    return {STYLE: _percent(hits[True]), OTHERS: _percent(hits[False]), "all": _percent(hits[True] + hits[False])} | gap


def _percent(shares: Sequence[float]) -> float:
    return 100.0 * sum(shares) / len(shares)


class Ablation(AblationRuns):
    """The rows of GatedBLIP2's table.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, "GatedBLIP2", ROWS, read_scores, {FROZEN: self._test_frozen})

    def _test_frozen(self, seed: int, folder: Path) -> None:
        words = self.words(FROZEN, seed, folder)
        words.insert(words.index("--seed"), "--eval-only")
        with trained(words) as trainer:
            trainer.test()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", choices=("short", "all"), default="all", help="short: what shows that the gates work")
    add_arguments(parser, config_file="configs/trainers/gated_blip2/tiny.yaml", output="output/gated_blip2_ablation")
    return parse(parser, argv)


def main() -> None:
    """Run everything and write table.md."""
    args = parse_args()
    ablation = Ablation(args)
    ablation.write(make_table(SHORT if args.rows == "short" else ROWS, args.seeds, ablation.run, (STYLE, OTHERS, "all", GAP)))


if __name__ == "__main__":
    main()

"""What each part of ViECap is worth on the miniature world, and whether its captions are about the pictures: one table.

    python scripts/viecap_ablation.py --seeds 1 2 3

Every row trains and tests as `train.py` does and changes one thing. `shuffled pictures` tests the full model with every caption
made for another picture: what is left is knowledge of the language. Object F1 compares the object names of a caption with those
of the scene, over all test pictures. Finished runs are not repeated. KEY VALUE pairs behind -- go to every row.
"""
from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from in_process_runs import ROOT, console, run_training, trained
from tabulate import tabulate

from clip_ext.files import replacing
from datasets.mini_scenes import read_records
from datasets.mini_scenes_generator import OBJECT_NAMES

NODE = "TRAINER.VIECAP"
FULL, SHUFFLED = "full", "shuffled pictures"
# Row -> what it changes.
ROWS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "no entity mask": (f"{NODE}.RANDOM_MASK", "False"),
    "no noise": (f"{NODE}.NOISE_VARIANCE", "0.0"),
    "no hard prompt": (f"{NODE}.USING_HARD_PROMPT", "False"),
    "no soft prompt": (f"{NODE}.ONLY_HARD_PROMPT", "True"),
}
METRICS = ("CIDEr", "BLEU-4", "ROUGE-L")
NAMES = re.compile(rf"\b(?:{'|'.join(sorted(OBJECT_NAMES, key=len, reverse=True))})\b")


def object_f1(captions: Mapping[str, str], scenes: Mapping[str, set[str]]) -> float:
    """Return the F1 of named objects over all pictures, percent.

    Args:
        captions: Image id -> caption.
        scenes: Image id -> names of its objects; others than the captioned ones do not count.
    """
    right = said = there = 0
    for image_id, caption in captions.items():
        names = set(NAMES.findall(caption.lower()))
        right, said, there = right + len(names & scenes[image_id]), said + len(names), there + len(scenes[image_id])
    return 200 * right / (said + there) if said + there else 0.0


def other_pictures(count: int) -> torch.Tensor:
    """Return a permutation (count,), count at least 2, that leaves no picture in its place."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


class Ablation:
    """Trains and tests rows, in folders of their own below the output folder.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output = (ROOT / args.output).absolute()

    def words(self, row: str, seed: int, folder: Path) -> list[str]:
        """The command line of `train.py`."""
        args = self.args
        words = ["--trainer", "ViECap", "--config-file", args.config_file]
        words += ["--dataset-config-file", args.dataset_config_file, "--root", args.data]
        return [*words, "--output-dir", str(folder), "--seed", str(seed), *args.opts, *ROWS.get(row, ())]

    def run(self, row: str, seed: int) -> dict[str, float]:
        """Return the test scores of a row and seed, in percent; trained and tested unless that is done."""
        folder = self.output / row.replace(" ", "_") / f"seed{seed}"
        scores = folder / "scores.json"
        if not scores.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with console(folder):
                if row == SHUFFLED:
                    self._test_shuffled(seed, folder)
                else:
                    run_training(self.words(row, seed, folder))
            with replacing(scores) as temporary:
                temporary.write_text(json.dumps(self._read_scores(folder)) + "\n", "utf-8")
        return json.loads(scores.read_text("utf-8"))

    def _test_shuffled(self, seed: int, folder: Path) -> None:
        self.run(FULL, seed)
        words = self.words(FULL, seed, folder)
        place = words.index("--seed")
        words[place:place] = ["--eval-only", "--model-dir", str(self.output / FULL / f"seed{seed}")]
        with trained(words) as trainer:
            loader = trainer.test_loader
            trainer.start_captions(loader, "test", greedy=False)
            loader.dataset.features = loader.dataset.features[other_pictures(len(loader.dataset))]
            trainer.test()

    def _read_scores(self, folder: Path) -> dict[str, float]:
        results = json.loads((folder / "results.json").read_text("utf-8"))
        rows = json.loads((folder / "predictions" / "mini_scenes_generated_captions.json").read_text("utf-8"))
        captions = {row["image_name"]: row["prediction"] for row in rows}
        return {name: find_score(results, name) for name in METRICS} | {"object F1": object_f1(captions, self._scenes)}

    @property
    def _scenes(self) -> dict[str, set[str]]:
        folders = (ROOT / self.args.data / "mini_scenes").iterdir()
        records = [record for folder in folders if (folder / "test.jsonl").is_file() for record in read_records(folder, "test")]
        return {record["scene_id"]: {thing["name"] for thing in record["objects"]} for record in records}


def find_score(results: Any, name: str) -> float:
    """Return the test score of a run's results.json."""
    return results["test"][name]


def spread(values: Sequence[float]) -> str:
    """Return mean and sample deviation."""
    return f"{statistics.mean(values):.2f}" + (f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def make_table(seeds: Sequence[int], run: Callable[[str, int], dict[str, float]]) -> str:
    """Run all rows and return the table in Markdown."""
    lines = []
    for row in (FULL, SHUFFLED, *[name for name in ROWS if name != FULL]):
        scores = [run(row, seed) for seed in seeds]
        lines.append([row, *(spread([each[name] for each in scores]) for name in scores[0])])
        print(" | ".join(lines[-1]), flush=True)
    return tabulate(lines, headers=["row", *METRICS, "object F1"], tablefmt="pipe", disable_numparse=True)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="configs/trainers/viecap/tiny.yaml", help="recipe that all rows start from")
    add("--dataset-config-file", default="configs/datasets/mini_scenes.yaml")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--data", default="data", help="data root")
    add("--output", type=Path, default=Path("output/viecap_ablation"))
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings for every row, behind --")
    args = parser.parse_args(argv)
    args.opts = [word for word in args.opts if word != "--"]
    if len(args.opts) % 2:
        parser.error(f"KEY VALUE pairs expected, got {' '.join(args.opts)}")
    return args


def main() -> None:
    """Run everything and write table.md."""
    args = parse_args()
    ablation = Ablation(args)
    table = make_table(args.seeds, ablation.run)
    with replacing(ablation.output / "table.md") as temporary:
        temporary.write_text(f"Seeds {', '.join(map(str, args.seeds))}.\n\n{table}\n", "utf-8")
    print(f"\n{table}\n\nRuns and table.md: {ablation.output}", file=sys.stdout)


if __name__ == "__main__":
    main()

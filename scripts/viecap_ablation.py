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
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ablation_runs import AblationRuns, add_arguments, make_table, parse
from in_process_runs import ROOT, trained

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
LINES = (FULL, SHUFFLED, *(name for name in ROWS if name != FULL))
METRICS, OBJECT_F1 = ("CIDEr", "BLEU-4", "ROUGE-L"), "object F1"
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


class Ablation(AblationRuns):
    """The rows of ViECap's table.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, "ViECap", ROWS, self._read_scores, {SHUFFLED: self._test_shuffled})

    def _test_shuffled(self, seed: int, folder: Path) -> None:
        self.run(FULL, seed)
        words = self.words(FULL, seed, folder)
        place = words.index("--seed")
        words[place:place] = ["--eval-only", "--model-dir", str(self.folder(FULL, seed))]
        with trained(words) as trainer:
            loader = trainer.test_loader
            trainer.start_captions(loader, "test", greedy=False)
            loader.dataset.features = loader.dataset.features[other_pictures(len(loader.dataset))]
            trainer.test()

    def _read_scores(self, folder: Path) -> dict[str, float]:
        results = json.loads((folder / "results.json").read_text("utf-8"))
        rows = json.loads((folder / "predictions" / "mini_scenes_generated_captions.json").read_text("utf-8"))
        captions = {row["image_name"]: row["prediction"] for row in rows}
        return {name: results["test"][name] for name in METRICS} | {OBJECT_F1: object_f1(captions, self._scenes)}

    @property
    def _scenes(self) -> dict[str, set[str]]:
        folders = (ROOT / self.args.data / "mini_scenes").iterdir()
        records = [record for folder in folders if (folder / "test.jsonl").is_file() for record in read_records(folder, "test")]
        return {record["scene_id"]: {thing["name"] for thing in record["objects"]} for record in records}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, config_file="configs/trainers/viecap/tiny.yaml", output="output/viecap_ablation")
    return parse(parser, argv)


def main() -> None:
    """Run everything and write table.md."""
    args = parse_args()
    ablation = Ablation(args)
    ablation.write(make_table(LINES, args.seeds, ablation.run, (*METRICS, OBJECT_F1)))


if __name__ == "__main__":
    main()

"""Which of BgObjLLaVA's steps costs accuracy, and which buys speed: every rung of its ladder and its controls in one table.

    python scripts/bgobj_ladder.py --config-file configs/trainers/bgobj_llava/tiny.yaml --rungs E0-E9 --controls --seeds 1 2 3

E0 is Hugging Face's own model and `generate`; E1 to E4 train nothing; E5 to E9 train as `train.py` does and are tested after
each epoch. Answers are made in batches without a cache; a second, timed pass asks one question at a time with the cache, and
its answers have to be the same. Finished runs are not repeated. Differences to E0 come from a paired bootstrap over questions.
KEY VALUE pairs at the end go to every rung.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from in_process_runs import console, run_training
from ladder_runs import run_test
from ladder_table import TableOfRungs

ROOT = Path(__file__).resolve().parent.parent
NODE = "TRAINER.BGOBJLLAVA"
LADDER = "configs/trainers/bgobj_llava/ladder"
BOTH = ("bg", "obj")


@dataclass(frozen=True)
class Rung:
    """One line of the table.

    Attributes:
        name: Such as E5, also the folder's name.
        meaning: What it is.
        overrides: Keys that make the rung.
        trains: Whether there is something to train; otherwise one run serves all seeds.
        weights: Name of the rung whose trained weights are tested; "" = its own.
        visible: Groups of image tokens that the language model sees in the test.
    """

    name: str
    meaning: str
    overrides: dict[str, object] = field(default_factory=dict)
    trains: bool = False
    weights: str = ""
    visible: tuple[str, ...] = BOTH

    @property
    def words(self) -> list[str]:
        """The overrides as KEY VALUE words."""
        return [str(word) for pair in self.overrides.items() for word in pair]


def read_rungs(*, miniature: bool = True) -> dict[str, Rung]:
    """Return the rungs of the configuration folder in order, with the learning rates of the miniature LLaVA or of 7B."""
    rungs = {}
    for file in sorted((ROOT / LADDER).glob("*.yaml")):
        found = yaml.safe_load(file.read_text("utf-8"))
        overrides = found["overrides"]
        if miniature and found["trains"]:
            overrides["OPTIM.LR"] = found["miniature_lr"]
        rungs[file.stem] = Rung(file.stem, found["meaning"], overrides, found["trains"])
    return rungs


def make_controls(rungs: dict[str, Rung], position: str = "sequential") -> list[Rung]:
    """Return what the rungs are held against; E5 is the one that is varied.

    Args:
        rungs: From `read_rungs`.
        position: `POSITION` of the recipe; the controls take the other one.
    """
    e5, e6, stock = rungs["E5"].overrides, rungs["E6"].overrides, {f"{NODE}.SPLIT": "none"}
    other = "sequential" if position == "raster" else "raster"
    return [
        Rung(f"E3-{other}", f"E3 with POSITION {other}", rungs["E3"].overrides | {f"{NODE}.POSITION": other}),
        Rung(f"E5-{other}", f"E5 with POSITION {other}", e5 | {f"{NODE}.POSITION": other}, trains=True),
        Rung("random", "E5 tested with random masks of equal sizes", e5 | {f"{NODE}.DET.BACKEND": "random"}, weights="E5"),
        Rung("obj", "E5, objects only", e5, weights="E5", visible=("obj",)),
        Rung("bg", "E5, background only", e5, weights="E5", visible=("bg",)),
        Rung("question", "E5, question only", e5, weights="E5", visible=()),
        Rung("E5-stock", "no split, tuned like E5", e5 | stock, trains=True),
        Rung("E6-stock", "no split, tuned like E6", e6 | stock, trains=True),
    ]


def choose(text: str, rungs: dict[str, Rung]) -> list[Rung]:
    """Return the rungs that `E0-E9`, or a list such as `E0,E2i,E5`, names.

    Raises:
        ValueError: If a name is unknown (lists all).
    """
    names, chosen = list(rungs), []
    for part in text.split(","):
        first, _, last = part.partition("-")
        unknown = dict.fromkeys(name for name in (first, last or first) if name not in rungs)
        if unknown:
            raise ValueError(f"--rungs {text!r} names {', '.join(unknown)}; expected some of {', '.join(names)}")
        chosen += names[names.index(first) : names.index(last or first) + 1]
    return [rungs[name] for name in dict.fromkeys(chosen)]


class Ladder:
    """Runs rungs in this process, in folders of their own below the output folder.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output = (ROOT / args.output).absolute()

    def words(self, seed: int, folder: Path) -> list[str]:
        """The command line of `train.py` without its KEY VALUE words."""
        args = self.args
        words = ["--trainer", "BgObjLLaVA", "--config-file", args.config_file]
        words += ["--dataset-config-file", args.dataset_config_file, "--root", args.data]
        return [*words, "--output-dir", str(folder), "--seed", str(seed)]

    def train(self, rung: Rung, seed: int) -> Path:
        """Train a rung unless that is done; returns its run folder."""
        folder = self.output / rung.name / f"seed{seed}"
        record = folder / "run.json"
        if not (record.is_file() and json.loads(record.read_text("utf-8"))["status"] == "finished"):
            folder.mkdir(parents=True, exist_ok=True)
            words = [*self.words(seed, folder), *self.args.opts, *rung.words, "TEST.NO_TEST", "True"]
            with console(folder):
                run_training(words)
        return folder

    def test(self, rung: Rung, seed: int, epoch: int, *, timed: bool = False) -> Path:
        """Test a rung after an epoch (0 = untrained) unless that is done; returns the folder of `predictions.jsonl`."""
        parts = (rung.name, f"seed{seed}" if epoch else "untrained", f"{'timed' if timed else 'test'}-{epoch}")
        folder = self.output.joinpath(*parts)
        if (folder / "done").is_file():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.words(seed, folder), "--eval-only"]
        if epoch:
            trained = self.output / (rung.weights or rung.name) / f"seed{seed}"
            words += ["--model-dir", str(trained), "--load-epoch", str(epoch)]
        words += [*self.args.opts, *rung.words, f"{NODE}.CACHE.MODE", "kv" if timed and caches(rung) else "none"]
        with console(folder):
            run_test(words + (self.args.timed_on if timed else []), visible=rung.visible,
                     limit=self.args.timed if timed else 0, stock=rung.name == "E0")  # fmt: skip
        (folder / "done").touch()
        return folder


def caches(rung: Rung) -> bool:
    """Whether the rung's background can be cached: only isolated tokens that come first."""
    return rung.overrides.get(f"{NODE}.SPLIT", "bgobj") == "bgobj"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="configs/trainers/bgobj_llava/tiny.yaml", help="recipe that all rungs start from")
    add("--dataset-config-file", default="configs/datasets/mini_scenes.yaml")
    add("--rungs", default="E0-E9", help="such as E0-E4 or E0,E3,E5")
    add("--controls", action="store_true", help="also run the controls")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--data", default="data", help="data root")
    add("--output", type=Path, default=Path("output/bgobj_ladder"))
    add("--timed", type=int, default=300, metavar="N", help="questions of the timed pass; 0 = none")
    add("--timed-on", nargs="*", default=[], metavar="WORD",
        help="KEY VALUE words that choose its data, such as DATASET.MINI_TEST groups")  # fmt: skip
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings for every rung, behind --")
    args = parser.parse_args(argv)
    args.opts = [word for word in args.opts if word != "--"]
    if len(args.opts) % 2 or any(not re.fullmatch(r"[A-Z][A-Z0-9_.]*", key) for key in args.opts[::2]):
        parser.error(f"KEY VALUE pairs expected, got {' '.join(args.opts)}")
    return args


def main() -> None:
    """Run everything, write table.md and table.json, show the table."""
    args = parse_args()
    recipe = yaml.safe_load((ROOT / args.config_file).read_text("utf-8"))
    rungs = read_rungs(miniature=recipe["MODEL"]["BACKBONE"]["NAME"] == "tiny_llava")
    try:
        chosen = choose(args.rungs, rungs)
    except ValueError as error:
        sys.exit(str(error))
    position = recipe["TRAINER"]["BGOBJLLAVA"].get("POSITION", "sequential")
    chosen += make_controls(rungs, position) if args.controls else []
    ladder, table = Ladder(args), TableOfRungs()
    for seed in args.seeds:
        for rung in chosen:
            if rung.trains:
                print(f"{rung.name}, seed {seed}: training ...", flush=True)
                epochs = count_epochs(ladder.train(rung, seed))
            else:
                epochs = [count_epochs(ladder.train(rungs[rung.weights], seed))[-1]] if rung.weights else [0]
            for epoch in epochs:
                if epoch == 0 and seed != args.seeds[0]:
                    continue
                folder = ladder.test(rung, seed, epoch)
                timed = ladder.test(rung, seed, epoch, timed=True) if epoch == epochs[-1] and is_timed(rung, args) else None
                cell = table.add(rung.name, rung.meaning, seed, epoch, folder, timed)
                print(f"{rung.name}, seed {seed}, epoch {epoch}: {cell}", flush=True)
    text = table.write(ladder.output)
    print(f"\n{text}\n\nRuns, table.md and table.json: {ladder.output}")


def is_timed(rung: Rung, args: argparse.Namespace) -> bool:
    """Whether a rung gets a timed pass: the stock model, and what can be cached and is no control."""
    return bool(args.timed) and (rung.name == "E0" or (caches(rung) and not rung.weights))


def count_epochs(folder: Path) -> list[int]:
    """Return the epochs of a run that can be tested."""
    return sorted(int(path.name.rpartition("-")[2]) for path in (folder / "adapter").glob("epoch-*"))


if __name__ == "__main__":
    main()

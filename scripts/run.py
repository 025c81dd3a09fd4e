"""One run in its place, or base-to-new in two; what is finished is skipped, what was interrupted is continued.

    bash scripts/run.sh DATASET TRAINER CFG SEED [SHOTS [base2new]] [KEY VALUE ...]
    bash scripts/run.sh handwritten_digits LaFTer tiny12 1
    bash scripts/run.sh caltech101 ZeroshotCLIP vit_b16 1 16 base2new

DATASET and CFG are names of YAML files. The run goes to output/DATASET/TRAINER/CFG_<SHOTS>shots/seedSEED (without SHOTS: all
training images, CFG/seedSEED). With base2new the base classes are trained in output/base2new/train_base/DATASET/shots_SHOTS/
TRAINER/CFG/seedSEED, and the model is then tested on the new classes in the folder of that name below test_new; the trainer has
to be one that can name classes it was not trained on. DATA is the data root (default data), OUTPUT the place of all runs
(default output).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clip_ext.console import accept_any_text  # noqa: E402

USAGE = "run DATASET TRAINER CFG SEED [SHOTS [base2new]] [KEY VALUE ...]"


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return dataset, trainer, config, seed, shots (None: all images), base2new and the KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=__doc__, usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("dataset", str), ("trainer", str), ("config", str), ("seed", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    args.shots = int(args.rest.pop(0)) if args.rest and args.rest[0].isdecimal() else None
    args.base2new = args.rest[:1] == ["base2new"]
    args.pairs = args.rest[args.base2new :]
    if args.base2new and args.shots is None:
        parser.error("base2new needs SHOTS before it")
    if len(args.pairs) % 2:
        parser.error(f"KEY VALUE pairs expected, got {' '.join(args.pairs)}")
    return args


def find_config_folder(trainer: str) -> str:
    """Return the folder whose name is the trainer's in snake case.

    Raises:
        SystemExit: If there is none (lists them).
    """
    folders = sorted(path.name for path in (ROOT / "configs" / "trainers").iterdir() if path.is_dir())
    for folder in folders:
        if folder.replace("_", "") == trainer.lower():
            return folder
    sys.exit(f"no settings for trainer {trainer} in configs/trainers; there are {', '.join(folders)}")


def is_finished(folder: Path) -> bool:
    """Return whether run.json says that the run in this folder came to its end."""
    file = ROOT / folder / "run.json"
    return file.is_file() and json.loads(file.read_text("utf-8")).get("status") == "finished"


def model_flags(folder: Path) -> list[str]:
    """Return the flags that load a finished run's model: the one best on validation, else the last; none if it has none."""
    pointers = sorted((ROOT / folder).glob("*/checkpoint"))
    if not pointers:
        return []
    if (pointers[0].parent / "model-best.pth.tar").is_file():
        return ["--model-dir", str(folder)]
    return ["--model-dir", str(folder), "--load-epoch", pointers[0].read_text("utf-8").strip().rpartition("-")[2]]


def run_in(folder: Path, args: argparse.Namespace, flags: list[str], settings: list[str]) -> None:
    """Start train.py in a folder unless the run there is finished; end this program with its exit code if it fails."""
    if is_finished(folder):
        print(f"Finished already, skipped: {folder}")
        return
    command = [
        sys.executable, "train.py",
        "--trainer", args.trainer,
        "--dataset-config-file", f"configs/datasets/{args.dataset}.yaml",
        "--config-file", f"configs/trainers/{find_config_folder(args.trainer)}/{args.config}.yaml",
        "--root", os.environ.get("DATA") or "data",
        "--output-dir", str(folder),
        "--seed", str(args.seed),
        *flags, *settings, *args.pairs,
    ]  # fmt: skip
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def main(argv: list[str]) -> None:
    """Run one command line."""
    accept_any_text()
    args = parse_args(argv)
    output, seed = Path(os.environ.get("OUTPUT") or "output"), f"seed{args.seed}"
    shots = [] if args.shots is None else ["DATASET.NUM_SHOTS", str(args.shots)]
    if not args.base2new:
        name = args.config if args.shots is None else f"{args.config}_{args.shots}shots"
        run_in(output / args.dataset / args.trainer / name / seed, args, [], shots)
        return
    place = Path(args.dataset) / f"shots_{args.shots}" / args.trainer / args.config / seed
    base, new = output / "base2new" / "train_base" / place, output / "base2new" / "test_new" / place
    run_in(base, args, [], [*shots, "DATASET.SUBSAMPLE_CLASSES", "base"])
    run_in(new, args, ["--eval-only", *model_flags(base)], [*shots, "DATASET.SUBSAMPLE_CLASSES", "new"])


if __name__ == "__main__":
    main(sys.argv[1:])

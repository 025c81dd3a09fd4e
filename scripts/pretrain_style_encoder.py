"""Pre-train a style encoder of GatedBLIP2: an EfficientNet that tells the styles of pictures apart.

    python scripts/pretrain_style_encoder.py --data wikiart --root /path/to/data --non-art /path/to/coco/train2017 \
        --output-dir output/style_b3
    python scripts/pretrain_style_encoder.py --data mini_scenes --arch efficientnet_tiny --init random --epochs 10 \
        --lr 3e-3 --output-dir output/tiny_style DATALOADER.NUM_WORKERS 0

The first command makes the encoder of paintings (27 styles, with photographs a 28th class), the second the miniature one of
`trainers/gated_blip2/assets/tiny_style`. The epoch that is best on validation is tested and written as
`style_encoder.safetensors` and `style_encoder.json`; `TRAINER.GATEDBLIP2.STYLE.CHECKPOINT` may name their folder. `--resume`
goes on after the last finished epoch. Settings of Dassl, or of `TRAINER.STYLEENCODERTRAINER`, may follow all flags as KEY VALUE
pairs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dassl_host import ensure_dassl  # noqa: E402

ensure_dassl()

from dassl.config import get_cfg_default  # noqa: E402
from dassl.utils import set_random_seed  # noqa: E402
from yacs.config import CfgNode  # noqa: E402

import datasets  # noqa: E402, F401  (registers the data sets)
from clip_ext.console import accept_any_text  # noqa: E402
from trainers.config_merge import Setting, merge_settings  # noqa: E402
from trainers.dataset_keys import add_dataset_keys  # noqa: E402
from trainers.gated_blip2.style import pretrain  # noqa: E402
from trainers.gated_blip2.style.networks import find_architecture  # noqa: E402
from trainers.run_folder import RunFolder, check_resume  # noqa: E402
from trainers.runs import log_to  # noqa: E402

logger = logging.getLogger("trainers.pretrain_style_encoder")
NODE = f"TRAINER.{pretrain.StyleEncoderTrainer.node_name()}"
# What --data means: settings of the data set.
DATA: dict[str, dict[str, str]] = {
    "wikiart": {"DATASET.NAME": "WikiArt"},
    "mini_scenes": {"DATASET.NAME": "MiniScenes", "DATASET.MINI_VIEW": "styles"},
    "folder": {"DATASET.NAME": "CustomImages"},
}
# What every pre-training has in common.
RECIPE: dict[str, object] = {
    "OPTIM.NAME": "adamw",
    "OPTIM.WEIGHT_DECAY": 0.05,
    "TRAIN.CHECKPOINT_FREQ": 1,
    "TRAIN.PRINT_FREQ": 50,
    "TEST.EVALUATOR": "Classification",
    "TEST.FINAL_MODEL": "best_val",
    "DATALOADER.TEST.BATCH_SIZE": 64,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("--root", default="", metavar="DIR", help="data root; of --data folder, the pictures; default: ./data")
    add("--data", choices=tuple(DATA), default="wikiart", help="whose styles are learned; folder: any layout of CustomImages")
    add("--non-art", default="", metavar="DIR", help="photographs that become a 28th class, with --data wikiart")
    add("--arch", choices=tuple(pretrain.ARCHITECTURES), default="efficientnet_b3")
    add("--init", default="imagenet", metavar="imagenet|random|FILE", help="weights to start from")
    add("--epochs", type=int, default=30)
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=3e-4)
    add("--image-size", type=int, default=0, metavar="PX", help="side of the crop; default: the architecture's, 300 for b3")
    add("--seed", type=int, default=1)
    add("--balance", choices=pretrain.CHOICES["BALANCE"], default="logit_adjust", help="of classes of unequal size")
    add("--resume", action="store_true", help="go on with the run in --output-dir; a new one starts if there is none")
    add("--output-dir", required=True, metavar="DIR")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings, after all flags")
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what cannot be meant ends the program with a message."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"KEY VALUE pairs expected after the flags, got {' '.join(args.opts)}")
    if args.non_art and args.data != "wikiart":
        parser.error(f"--non-art adds a class to WikiArt's; --data is {args.data}")
    if args.data == "folder" and not args.root:
        parser.error("--data folder needs --root, the folder or list of your pictures")
    return args


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration of a command line.

    Raises:
        ValueError: With every wrong setting.
    """
    cfg = get_cfg_default()
    add_dataset_keys(cfg.DATASET)
    pretrain.add_config(cfg)
    side_px = args.image_size or find_architecture(args.arch).view.crop_px
    flags = {
        "DATASET.ROOT": args.root, "DATASET.NON_ART": args.non_art, "OUTPUT_DIR": args.output_dir, "SEED": args.seed,
        "OPTIM.MAX_EPOCH": args.epochs, "OPTIM.LR": args.lr, "DATALOADER.TRAIN_X.BATCH_SIZE": args.batch_size,
        f"{NODE}.ARCH": args.arch, f"{NODE}.INIT": args.init, "INPUT.SIZE": (side_px, side_px),
        f"{NODE}.BALANCE": args.balance, "TRAINER.NAME": pretrain.StyleEncoderTrainer.__name__,
    }  # fmt: skip
    settings = [Setting(key, value, "script") for key, value in (RECIPE | DATA[args.data] | flags).items()]
    settings += [Setting(key, value, "command line") for key, value in zip(args.opts[0::2], args.opts[1::2], strict=True)]
    problems = merge_settings(cfg, settings)
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in the configuration:\n  " + "\n  ".join(problems))
    cfg.freeze()
    return cfg


def check_folder(cfg: CfgNode, *, resume: bool) -> None:
    """Refuse to mix runs.

    Raises:
        FileExistsError: If the folder holds a run that is not to be resumed.
        ValueError: If it is one of other settings (lists them).
    """
    pointers = sorted(Path(cfg.OUTPUT_DIR).glob("*/checkpoint"))
    if pointers and not resume:
        raise FileExistsError(f"--output-dir {cfg.OUTPUT_DIR} holds a run ({pointers[0]}); give --resume, or another folder")
    check_resume(cfg, "auto")


def run(cfg: CfgNode, argv: Sequence[str]) -> None:
    """Train, test the epoch that was best on validation, and write it."""
    folder = RunFolder(cfg, "train")
    set_random_seed(cfg.SEED)
    with log_to(cfg.OUTPUT_DIR):
        folder.start(argv, ensure_dassl())
        try:
            trainer = pretrain.StyleEncoderTrainer(cfg)
            folder.describe_data(trainer.dm.dataset)
            folder.record_results(trainer)
            trainer.train()
            trainer.export(folder.path, read_scores(folder.path, trainer.best_result))
        except BaseException as error:
            folder.finish(error)
            raise
        folder.finish()


def read_scores(folder: Path, best_val: float) -> dict[str, float]:
    """Return what was measured in a run, percent: the best validation, and the tests of the epoch that had it."""
    stored = json.loads((folder / "results.json").read_text("utf-8"))
    tested = {f"test_{name}": round(stored["test"][name], 2) for name in ("accuracy", "macro_f1")}
    return {"val_accuracy": round(best_val, 2), **tested}


def main(argv: Sequence[str]) -> None:
    """Run one command line."""
    args = parse_args(argv)
    accept_any_text()
    try:
        cfg = build_cfg(args)
        check_folder(cfg, resume=args.resume)
        run(cfg, argv)
    except (ValueError, OSError) as error:  # the message helps; run.json has the traceback
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])

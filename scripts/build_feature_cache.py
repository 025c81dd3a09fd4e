"""Encode all pictures of a run of GatedBLIP2 ahead of it, with the same settings; the run then reads what it would compute.

    python scripts/build_feature_cache.py --config-file configs/trainers/gated_blip2/artquest.yaml \\
        --dataset-config-file configs/datasets/artquest.yaml --root DATA TRAINER.GATEDBLIP2.STYLE.CHECKPOINT FILE

Features go below TRAINER.GATEDBLIP2.CACHE.DIR ("" = output/cache), into a folder named by everything that they depend on: runs
that differ in their gates, questions or learning rate share it. What is there already is kept; a build that was ended goes on.
A training does by itself what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dassl_host import ensure_dassl  # noqa: E402

ensure_dassl()

from dassl.engine import build_trainer  # noqa: E402
from yacs.config import CfgNode  # noqa: E402

import datasets  # noqa: E402, F401  (registers the data sets)
import train  # noqa: E402
from clip_ext.console import accept_any_text  # noqa: E402
from trainers import runs  # noqa: E402

TRAINER = "GatedBLIP2"
FLAGS = ("root", "dataset-config-file", "config-file", "backbone", "seed")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in FLAGS:
        parser.add_argument(f"--{flag}", help="as for train.py")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, as for train.py")
    return parser.parse_intermixed_args(arguments)


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the configuration that train.py would have.

    Raises:
        ValueError: If it cannot work, or has no cache.
    """
    given = {flag: getattr(args, flag.replace("-", "_")) for flag in FLAGS}
    words = [word for flag, value in given.items() if value is not None for word in (f"--{flag}", value)]
    cfg = runs.build_cfg(train.parse_args(["--trainer", TRAINER, *words, *args.opts]))
    runs.check_names(cfg)
    if not cfg.TRAINER.GATEDBLIP2.CACHE.ENABLE:
        raise ValueError("TRAINER.GATEDBLIP2.CACHE.ENABLE is False: the run would read no cache; expected True")
    return cfg


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    accept_any_text()
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    for package in runs.LOGGED_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the engine's lines; ours is the result
            cache = build_trainer(build_cfg(args)).prepare_cache()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(cache)} images, {len(cache) * cache.layout.row_bytes / 1e9:.2f} GB in {cache.folder}")


if __name__ == "__main__":
    main()

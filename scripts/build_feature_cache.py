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
import sys

from ahead_of_run import add_run_flags, build_run_cfg, run_command
from dassl.engine import build_trainer
from yacs.config import CfgNode

TRAINER = "GatedBLIP2"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_flags(parser)
    return parser.parse_intermixed_args(arguments)


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the configuration that train.py would have.

    Raises:
        ValueError: If it cannot work, or has no cache.
    """
    cfg = build_run_cfg(args, TRAINER)
    if not cfg.TRAINER.GATEDBLIP2.CACHE.ENABLE:
        raise ValueError("TRAINER.GATEDBLIP2.CACHE.ENABLE is False: the run would read no cache; expected True")
    return cfg


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    args = parse_args(arguments)

    def encode() -> None:
        with contextlib.redirect_stdout(sys.stderr):  # the engine's lines; ours is the result
            cache = build_trainer(build_cfg(args)).prepare_cache()
        print(f"{len(cache)} images, {len(cache) * cache.layout.row_bytes / 1e9:.2f} GB in {cache.folder}")

    run_command(encode)


if __name__ == "__main__":
    main()

"""What commands share that compute ahead of a run what it would compute itself: flags, configuration, log, errors."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dassl_host import ensure_dassl  # noqa: E402

ensure_dassl()

from yacs.config import CfgNode  # noqa: E402

import datasets  # noqa: E402, F401  (registers the data sets)
import train  # noqa: E402
from clip_ext.console import accept_any_text  # noqa: E402
from trainers import runs  # noqa: E402

FLAGS = ("root", "dataset-config-file", "config-file", "backbone", "seed")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags and KEY VALUE pairs of train.py that say which run it is."""
    for flag in FLAGS:
        parser.add_argument(f"--{flag}", help="as for train.py")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, as for train.py")


def build_run_cfg(args: argparse.Namespace, trainer: str) -> CfgNode:
    """Return the configuration that train.py would have.

    Args:
        args: With the flags of `add_run_flags`.
        trainer: Registered name.
    Raises:
        ValueError: If a setting or name is unknown (lists every problem).
    """
    given = {flag: getattr(args, flag.replace("-", "_")) for flag in FLAGS}
    words = [word for flag, value in given.items() if value is not None for word in (f"--{flag}", value)]
    cfg = runs.build_cfg(train.parse_args(["--trainer", trainer, *words, *args.opts]))
    runs.check_names(cfg)
    return cfg


def run_command(command: Callable[[], None]) -> None:
    """Run a command with its progress in the log; what was asked wrongly ends it with one message and exit status 1."""
    accept_any_text()
    logging.basicConfig(format="%(message)s")
    for package in runs.LOGGED_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        command()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")

"""Runs inside this process: training as `train.py` does it, and trained runs opened for a test with changes."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dassl_host import ensure_dassl  # noqa: E402

ensure_dassl()

from dassl.engine import build_trainer  # noqa: E402
from dassl.utils import set_random_seed  # noqa: E402

import datasets  # noqa: E402, F401  (registers the data sets)
import train  # noqa: E402
from trainers import runs  # noqa: E402


def run_training(words: Sequence[str]) -> None:
    """Train as `train.py` does with these arguments."""
    parsed = train.parse_args(list(words))
    cfg, folder = runs.prepare(parsed)
    runs.run(cfg, folder, parsed, words)


@contextmanager
def trained(words: Sequence[str]) -> Iterator[Any]:
    """Open a trained run as `train.py --eval-only` does with these arguments; what happens to the trainer is recorded.

    Args:
        words: Arguments of `train.py`.
    """
    parsed = train.parse_args(list(words))
    cfg, folder = runs.prepare(parsed)
    set_random_seed(cfg.SEED)
    with runs.log_to(cfg.OUTPUT_DIR):
        folder.start(words, ensure_dassl())
        trainer = build_trainer(cfg)
        folder.describe_data(trainer.dm.dataset)
        folder.record_results(trainer)
        trainer.load_model(parsed.model_dir or "", epoch=parsed.load_epoch)
        yield trainer
        folder.finish()


@contextmanager
def console(folder: Path) -> Iterator[None]:
    """Send what a run prints to console.txt in its folder."""
    file = folder / "console.txt"
    try:
        with file.open("w", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
            yield
    except BaseException:
        print(f"A run failed; its output is in {file}", file=sys.stderr)
        raise

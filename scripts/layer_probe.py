"""How much each block of a CLIP already knows, and which stages that suggests for HybridCascadeLaFTer.

    python train.py --trainer LaFTer --config-file configs/trainers/lafter/tiny12.yaml \\
        --dataset-config-file configs/datasets/handwritten_digits.yaml --output-dir output/probe --seed 1 TRAINER.LAFTER.PHASE text_only
    python scripts/layer_probe.py output/probe [--labels]

Reads a run of the LaFTer family. The CLS token of every block goes through CLIP's own post-norm and projection, and the run's
classifier (after `PHASE text_only`: trained on texts alone) judges it, without prompts. Agreement with the last block needs no label; `--labels` adds the accuracy on the
validation split.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402, F401  (registers the data sets)
import torch  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from trainers.prediction.run import load_trainer, read_run  # noqa: E402

# A block whose labels agree with the last block's no more often than this, beyond chance, is left out of the stages.
LEAST_AGREEMENT = 0.2
N_STAGES = 3


@dataclass(frozen=True)
class BlockView:
    """What the classifier says at each block about N images.

    Attributes:
        labels: Its classes, (depth, N).
        confidence: Mean probability of those classes, (depth,).
        truth: Labels of the data set, (N,); -1 = none.
    """

    labels: Tensor
    confidence: Tensor
    truth: Tensor


@torch.no_grad()
def view_blocks(trainer, batches: Iterable[dict]) -> BlockView:
    """Judge every block's CLS token of all images."""
    driver, depth = trainer.student.driver, trainer.student.info.depth
    labels, confidence, truth = [], [], []
    for batch in batches:
        taps = driver(batch["img"].to(trainer.device), taps=range(1, depth + 1)).taps
        tokens = torch.stack([taps[block] for block in range(1, depth + 1)])
        features = F.normalize(driver.tower.project(driver.tower.post(tokens)).float(), dim=-1)
        best = F.linear(features, trainer.student.text_classifier_weight()).softmax(dim=-1).max(dim=-1)
        labels.append(best.indices.cpu())
        confidence.append(best.values.cpu())
        truth.append(batch["label"])
    return BlockView(torch.cat(labels, dim=1), torch.cat(confidence, dim=1).mean(dim=1), torch.cat(truth))


def agreement_with_last(labels: Tensor) -> list[float]:
    """Share of images on which each block agrees with the last one, for labels (depth, N)."""
    return (labels == labels[-1]).float().mean(dim=1).tolist()


def recommend_stages(agreement: list[float], n_classes: int) -> list[list[int]]:
    """Group the blocks that know something into stages, cut where agreement jumps most.

    Args:
        agreement: Per block, [0, 1], the last one 1.
        n_classes: For the agreement that chance gives.
    Returns:
        At most `N_STAGES` lists of 1-based blocks that end with the last block.
    """
    chance = 1 / n_classes
    above = [(share - chance) / (1 - chance) for share in agreement]
    unsure = [block for block, share in enumerate(above, start=1) if share < LEAST_AGREEMENT]
    first = max(unsure, default=0) + 1
    jumps = {block: above[block - 1] - above[block - 2] for block in range(first + 1, len(above) + 1)}
    starts = [first, *sorted(sorted(jumps, key=jumps.__getitem__)[-(N_STAGES - 1) :])]
    ends = [*(start - 1 for start in starts[1:]), len(above)]
    return [list(range(start, end + 1)) for start, end in zip(starts, ends, strict=True)]


def load_run(folder: Path):
    """Build the run's trainer with its data and load its weights."""
    run = read_run(folder)
    trainer, _ = load_trainer(run, with_data=True)
    if not hasattr(trainer, "student"):
        raise ValueError(f"{folder} is a run of {run.cfg.TRAINER.NAME}; expected one of the LaFTer family")
    return trainer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of LaFTer, MultiLayerLaFTer or HybridCascadeLaFTer")
    parser.add_argument("--labels", action="store_true", help="labels may be used: add accuracy on the validation split")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        trainer = load_run(args.run)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    seen = view_blocks(trainer, trainer.train_loader_x)
    agreement = agreement_with_last(seen.labels)
    columns = {
        "block": range(1, len(agreement) + 1),
        "agreement with the last %": [f"{100 * share:.1f}" for share in agreement],
        "confidence": [f"{value:.3f}" for value in seen.confidence.tolist()],
    }
    if args.labels:
        val = view_blocks(trainer, trainer.val_loader)
        columns["val accuracy %"] = [f"{100 * hits:.1f}" for hits in (val.labels == val.truth).float().mean(dim=1).tolist()]
    print(tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\nSuggested: TRAINER.HYBRIDCASCADELAFTER.STAGES \"{recommend_stages(agreement, trainer.num_classes)}\"")


if __name__ == "__main__":
    main()

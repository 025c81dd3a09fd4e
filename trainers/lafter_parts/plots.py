"""Pictures of a run, written as PNG into its output folder: losses, pseudo-labels, stage weights, test confusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_NAMES = ("loss", "main", "consistency", "deep")
MAX_NAMED_CLASSES = 40  # more class names than that cannot be read beside a matrix


@contextmanager
def count_confusions(evaluator: Any, n_classes: int) -> Iterator[Tensor]:
    """Count (true class, predicted class) pairs of whatever the evaluator processes inside this context.

    Yields:
        The counts, (C, C), int64, filled as batches come; rows are true classes.
    """
    counts = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    process = evaluator.process

    def process_and_count(logits: Tensor, labels: Tensor) -> None:
        process(logits, labels)
        pairs = labels.cpu().long() * n_classes + logits.argmax(dim=-1).cpu()
        counts.add_(torch.bincount(torch.as_tensor(pairs), minlength=n_classes**2).view(n_classes, n_classes))

    evaluator.process = process_and_count
    try:
        yield counts
    finally:
        evaluator.process = process


def draw_run(folder: str | Path, rows: Sequence[dict[str, Any]], confusions: Tensor, classnames: Sequence[str]) -> list[Path]:
    """Draw all pictures for which there is something to show.

    Args:
        folder: Output folder.
        rows: Of the run's report, one per epoch.
        confusions: Counts, (C, C), rows true; all zero = not tested.
        classnames: C names.
    Returns:
        The files written.
    """
    folder, written = Path(folder), []
    if rows:
        written.append(_save(_draw_losses(rows), folder / "losses.png"))
        name = "pseudo_labels" if "agreement" in rows[-1] else "training_predictions"
        written.append(_save(_draw_labels(rows, classnames), folder / f"{name}.png"))
        if "fusion" in rows[-1]:
            written.append(_save(_draw_stages(rows[-1]), folder / "stage_weights.png"))
    if confusions.sum():
        written.append(_save(_draw_confusions(confusions, classnames), folder / "confusion_matrix.png"))
    return written


def _figure(columns: int, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    # The object interface: pyplot would pick a global, possibly graphical backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _draw_losses(rows: Sequence[dict[str, Any]]) -> Figure:
    figure, (axes,) = _figure(1)
    epochs = [row["epoch"] for row in rows]
    for name in LOSS_NAMES:
        if name in rows[-1]:
            axes.plot(epochs, [row[name] for row in rows], marker="o", markersize=3, label=name)
    axes.set(xlabel="epoch", ylabel="loss (weighted)", title="Training losses")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return figure


def _draw_labels(rows: Sequence[dict[str, Any]], classnames: Sequence[str]) -> Figure:
    figure, (left, right) = _figure(2)
    epochs = [row["epoch"] for row in rows]
    for name, label in (
        ("mean_confidence", "student confidence"),
        ("teacher_confidence", "teacher confidence"),
        ("agreement", "agreement with the teacher"),
        ("counted", "share that counts"),
        ("train_accuracy", "accuracy on training views"),
    ):
        if name in rows[-1]:
            left.plot(epochs, [row[name] for row in rows], marker="o", markersize=3, label=label)
    title = "Pseudo-labels (no label read)" if "agreement" in rows[-1] else "Training images"
    left.set(xlabel="epoch", ylim=(0, 1.02), title=title)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    right.bar(range(len(rows[-1]["histogram"])), rows[-1]["histogram"])
    right.set(xlabel="class", ylabel="images", title=f"Student's classes, epoch {epochs[-1]}")
    if len(classnames) <= MAX_NAMED_CLASSES:
        right.set_xticks(range(len(classnames)), classnames, rotation=90)
    return figure


def _draw_stages(row: dict[str, Any]) -> Figure:
    figure, (left, right) = _figure(2)
    names = [f"{blocks[0]}-{blocks[-1]}" if len(blocks) > 1 else str(blocks[0]) for blocks in row["stages"]]
    left.bar(names, row["fusion"])
    left.set(xlabel="stage (blocks)", ylabel="weight", title="Fusion of the stages")
    for blocks, weights, name in zip(row["stages"], row["nga"], names, strict=True):
        right.plot(blocks, weights, marker="o", label=name)
    right.set(xlabel="block", ylabel="weight", ylim=(0, 1.02), title="Blocks inside each stage")
    right.legend(loc="center left")
    return figure


def _draw_confusions(counts: Tensor, classnames: Sequence[str]) -> Figure:
    side = 3.0 + 0.25 * min(len(classnames), MAX_NAMED_CLASSES)
    figure, (axes,) = _figure(1, width=side + 0.8, height=side)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    image = axes.imshow(shares.tolist(), cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", title="Test confusions")
    if len(classnames) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(classnames)), classnames, rotation=90)
        axes.set_yticks(range(len(classnames)), classnames)
    return figure

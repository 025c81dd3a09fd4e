"""What a run trains, and how its epochs went: `trainable_parameters.txt` and `report.json` in the run folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clip_ext.files import replacing
from trainers.parameter_groups import ParameterGroup

logger = logging.getLogger(__name__)

REPORT, TABLE = "report.json", "trainable_parameters.txt"


@dataclass(frozen=True)
class ParameterRow:
    """One line of the table.

    Attributes:
        name: Trainable group, or part of the base model.
        trainable: Whether it trains.
        tensors, numbers: Parameters, and scalars in them.
        dtype: As stored; several are joined by `+`.
        lr_mult: Multiplier of `OPTIM.LR`; None for a frozen part.
    """

    name: str
    trainable: bool
    tensors: int
    numbers: int
    dtype: str
    lr_mult: float | None


def describe_parameters(
    model: nn.Module, groups: Sequence[ParameterGroup], *, parts: Sequence[str], part_of: Callable[[str], str]
) -> list[ParameterRow]:
    """Count what trains, by group, and what is frozen, by part of the base model.

    Args:
        model: The base model; parameters of `groups` in it are not counted a second time.
        groups: Of the trainer.
        parts: Of the base model, in the order of the table; one that holds nothing frozen has no row.
        part_of: Name of a parameter -> its part.
    """
    rows = [_describe(group.name, group.parameters, group.lr_mult) for group in groups]
    taken = {id(parameter) for group in groups for parameter in group.parameters}
    frozen: dict[str, list[nn.Parameter]] = {part: [] for part in parts}
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken:
            frozen[part_of(name)].append(parameter)
    return rows + [_describe(part, parameters, None) for part, parameters in frozen.items() if parameters]


def _describe(name: str, parameters: Iterable[nn.Parameter], lr_mult: float | None) -> ParameterRow:
    listed = list(parameters)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in listed})
    return ParameterRow(
        name, lr_mult is not None, len(listed), sum(parameter.numel() for parameter in listed), "+".join(dtypes), lr_mult
    )


def format_parameters(rows: Sequence[ParameterRow]) -> str:
    """Return the rows as a table with the sums of both kinds."""
    lines = [f"{'part':<30}{'':<11}{'tensors':>9}{'numbers':>16}  {'dtype':<18}{'lr x':>6}"]
    for row in rows:
        kind, lr = ("trainable", f"{row.lr_mult:g}") if row.trainable else ("frozen", "")
        lines.append(f"{row.name:<30}{kind:<11}{row.tensors:>9,}{row.numbers:>16,}  {row.dtype:<18}{lr:>6}".rstrip())
    sums = {kind: sum(row.numbers for row in rows if row.trainable is kind) for kind in (True, False)}
    share = 100 * sums[True] / max(sum(sums.values()), 1)
    lines.append(f"{'in all':<30}{'trainable':<11}{'':>9}{sums[True]:>16,}  {share:.2f}% of all")
    lines.append(f"{'in all':<30}{'frozen':<11}{'':>9}{sums[False]:>16,}")
    return "\n".join(lines)


class RunReport:
    """`report.json`: facts of the run and one row per epoch; written after every epoch, so that a resumed run goes on in it.

    Args:
        folder: Output folder of the run; made when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self.facts: dict[str, Any] = {}
        self.epochs: list[dict[str, Any]] = []

    def add_parameters(self, rows: Sequence[ParameterRow]) -> None:
        """Keep the table of parameters, and write it as a file of its own."""
        table = format_parameters(rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / TABLE) as temporary:
            temporary.write_text(table + "\n", "utf-8")
        self.facts["parameters"] = [asdict(row) for row in rows]

    def add_facts(self, **facts: Any) -> None:
        """Keep further facts in JSON's types: load report, memory, dropped samples, notes on loading."""
        self.facts |= facts

    def resume(self, start_epoch: int) -> None:
        """Take over the epochs up to `start_epoch` (finished ones) that an earlier start of this run has written."""
        path = self._folder / REPORT
        if start_epoch > 0 and path.is_file():
            stored = json.loads(path.read_text("utf-8"))
            self.epochs = [row for row in stored["epochs"] if row["epoch"] <= start_epoch]

    def add_epoch(self, epoch: int, losses: Mapping[str, float], **further: Any) -> None:
        """Append an epoch, say how its losses compare with the one before, and write the file.

        Args:
            epoch: Finished epochs, from 1.
            losses: Mean of each loss over the epoch.
            further: Other figures: validation scores, memory, cache counters.
        """
        before = self.epochs[-1]["losses"] if self.epochs else {}
        self.epochs = [row for row in self.epochs if row["epoch"] != epoch]
        self.epochs.append({"epoch": epoch, "losses": dict(losses), **further})
        parts = [f"{name} {value:.4f}{_change(before.get(name), value)}" for name, value in losses.items()]
        logger.info("Epoch %d: %s", epoch, ", ".join(parts))
        self.write()

    def exists(self) -> bool:
        """Whether a run has written the file before."""
        return (self._folder / REPORT).is_file()

    def compare(self) -> list[dict[str, Any]]:
        """Return, for each epoch after the first, how much every loss has changed since the one before."""
        return [
            {
                "epochs": [earlier["epoch"], later["epoch"]],
                "change": {
                    name: value - earlier["losses"][name]
                    for name, value in later["losses"].items()
                    if name in earlier["losses"]
                },
            }
            for earlier, later in zip(self.epochs, self.epochs[1:], strict=False)
        ]

    def write(self) -> None:
        """Write the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {**self.facts, "epochs": self.epochs, "comparison": self.compare()}
        with replacing(self._folder / REPORT) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _change(before: float | None, now: float) -> str:
    return "" if before is None else f" ({now - before:+.4f})"

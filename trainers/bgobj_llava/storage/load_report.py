"""Where every part of a loaded model came from, and what did not come from anywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

logger = logging.getLogger(__name__)

# Found in the tensor's name, in this order: files of several transformers versions nest the same parts differently.
PARTS = ("vision_tower", "multi_modal_projector", "lm_head", "language_model")


@dataclass(frozen=True)
class PartReport:
    """One part of a model.

    Attributes:
        part: `vision_tower`, `multi_modal_projector`, `language_model` or `lm_head`.
        files: Names of the files that hold its tensors.
        loaded: Tensors that were read.
        missing: Names of tensors that no file holds; they were initialised at random.
        unexpected: Names in the files that the model does not have.
        random: Tensors that were initialised at random.
    """

    part: str
    files: list[str]
    loaded: int
    missing: list[str]
    unexpected: list[str]
    random: int


@dataclass(frozen=True)
class LoadReport:
    """All parts of a model."""

    parts: tuple[PartReport, ...]

    def to_list(self) -> list[dict[str, Any]]:
        """Return it in JSON's types."""
        return [asdict(part) for part in self.parts]

    def log(self) -> None:
        """Write one line per part; a warning for one that is incomplete."""
        for part in self.parts:
            level = logging.WARNING if part.random or part.unexpected else logging.INFO
            logger.log(
                level,
                "Loaded %s: %d tensors from %s, %d missing, %d unexpected, %d random%s",
                part.part, part.loaded, ", ".join(part.files) or "no file",
                len(part.missing), len(part.unexpected), part.random, _examples([*part.missing, *part.unexpected]),
            )  # fmt: skip


def describe_loading(model: nn.Module, files: Sequence[Path], info: Mapping[str, Iterable[str]]) -> LoadReport:
    """Describe a model that was read from files.

    Args:
        model: As loaded.
        files: Its safetensors.
        info: Transformers' loading info: `missing_keys` and `unexpected_keys`.
    """
    missing, unexpected = (_by_part(info[key]) for key in ("missing_keys", "unexpected_keys"))
    own, sources = _by_part(model.state_dict()), _files_by_part(files)
    return LoadReport(
        tuple(
            PartReport(part, sources[part], len(own[part]) - len(lost), lost, unexpected[part], random=len(lost))
            for part, lost in missing.items()
        )
    )


def describe_random(model: nn.Module) -> LoadReport:
    """Describe a model without weights."""
    own = _by_part(model.state_dict())
    return LoadReport(tuple(PartReport(part, [], 0, [], [], len(own[part])) for part in PARTS))


def part_of(name: str) -> str:
    """Return the part that a tensor belongs to by its name."""
    return next((part for part in PARTS if part in name), PARTS[-1])


def _by_part(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in sorted(names):
        found[part_of(name)].append(name)
    return found


def _files_by_part(files: Sequence[Path]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for file in files:
        with safe_open(file, "pt") as content:
            held = _by_part(content.keys())
        for part in PARTS:
            found[part] += [file.name] * bool(held[part])
    return found


def _examples(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""

"""Which DATASET keys an emotion data set can follow."""

from collections.abc import Sequence
from typing import Protocol

from yacs.config import CfgNode

from datasets.emotion_splits import FOLDS

SPLIT_CHOICES = ("auto", "official", "seeded")
LABEL_SOURCES = ("folder", "votes")
TIES_CHOICES = ("auto", "first", "drop")


class Declarations(Protocol):
    """What an `EmotionDataset` says about itself."""

    name: str
    has_votes: bool
    may_have_neutral: bool
    folds: bool
    official_files: str


def check_keys(dataset: Declarations, settings: CfgNode) -> None:
    """Refuse keys that the set cannot follow.

    Args:
        dataset: Read for its declarations.
        settings: The node DATASET.
    Raises:
        ValueError: One for all of them (keys, values, allowed values).
    """
    problems = [
        *_problems_with_words(settings),
        *_problems_with_numbers(settings),
        *(f"DATASET.{key}" for key in _unsuitable(dataset, settings)),
    ]
    if problems:
        raise ValueError(f"data set {dataset.name}: " + "; ".join(problems))


def _problems_with_words(settings: CfgNode) -> list[str]:
    choices: dict[str, Sequence[str]] = {"SPLIT": SPLIT_CHOICES, "LABEL_SOURCE": LABEL_SOURCES, "TIES": TIES_CHOICES}
    # Votes and ring are of all classes; a half of them has neither.
    choices["SUBSAMPLE_CLASSES"] = ("all",)
    return [
        f"DATASET.{key} is {settings[key]!r}; expected one of {', '.join(words)}"
        for key, words in choices.items()
        if settings[key] not in words
    ]


def _problems_with_numbers(settings: CfgNode) -> list[str]:
    ranges = {
        "FOLD": (-1 <= settings.FOLD < FOLDS, f"-1 (no folds) or 0 to {FOLDS - 1}"),
        "TEST_PERCENT": (0 <= settings.TEST_PERCENT < 1, "a share in [0, 1)"),
        "SPLIT_SEED": (settings.SPLIT_SEED >= 0, "0 or more"),
    }
    return [f"DATASET.{key} is {settings[key]}; expected {expected}" for key, (fits, expected) in ranges.items() if not fits]


def _unsuitable(dataset: Declarations, settings: CfgNode) -> list[str]:
    """Keys with a legal value that this set has nothing for."""
    problems = []
    if settings.SPLIT == "official" and not dataset.official_files:
        problems.append("SPLIT is 'official', but its authors published no split; expected auto or seeded")
    if settings.LABEL_SOURCE == "votes" and not dataset.has_votes:
        problems.append("LABEL_SOURCE is 'votes', but it has none; expected folder")
    if 0 <= settings.FOLD < FOLDS and not dataset.folds:
        problems.append(f"FOLD is {settings.FOLD}, but its protocol has no folds; expected -1")
    if settings.WITH_NEUTRAL and not dataset.may_have_neutral:
        problems.append("WITH_NEUTRAL is True, but nobody voted on neutral; expected False")
    return problems

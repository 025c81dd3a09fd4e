"""Splits of emotion data sets: the authors' parts, folds, and seeded ones; train, val and test are always disjoint."""

import logging
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from datasets.base import Item
from datasets.image_files import some
from datasets.splits import Parts, split_stratified, stored_split

logger = logging.getLogger(__name__)

FOLDS = 5


@dataclass(frozen=True)
class SplitRule:
    """How to split one set.

    Attributes:
        name: Of the data set, for messages.
        folder: Of the data set; made splits are stored in it.
        test_share: Of all images in a seeded split; DATASET.TEST_PERCENT replaces it.
        val_share: Of the images outside test, where no validation part is given.
        official_files: What the authors' parts come from, for messages.
    """

    name: str
    folder: Path
    test_share: float
    val_share: float
    official_files: str

    def split(self, cfg: CfgNode, items: Sequence[Item], official: Mapping[str, Sequence[str]] | None) -> tuple[str, Parts]:
        """Divide the items.

        Args:
            cfg: Read for DATASET.FOLD, SPLIT_SEED, TEST_PERCENT and OUTPUT_DIR.
            items: All usable images.
            official: The authors' parts, image paths relative to `folder`; None: there are none, or they are not wanted.
        Returns:
            Kind (`official`, `seeded`, `fold_0` ...), and the parts `train`, `val`, `test`.
        Raises:
            ValueError: If a test share is asked for of a split that is not seeded, or an image is in two official parts.
        """
        fold, wanted_share = cfg.DATASET.FOLD, cfg.DATASET.TEST_PERCENT
        kind = f"fold_{fold}" if fold >= 0 else "seeded" if official is None else "official"
        if wanted_share and kind != "seeded":
            raise ValueError(
                f"DATASET.TEST_PERCENT is {wanted_share}, but {self.name} uses its {kind} split; set DATASET.SPLIT seeded and "
                "DATASET.FOLD -1, or leave DATASET.TEST_PERCENT at 0"
            )
        if kind == "official":
            return kind, self._official(cfg, items, official)
        return kind, self._made(cfg, items, kind)

    def _made(self, cfg: CfgNode, items: Sequence[Item], kind: str) -> Parts:
        """A seeded split or a fold, made once and stored beside the data."""
        seed, fold = cfg.DATASET.SPLIT_SEED, cfg.DATASET.FOLD
        test = cfg.DATASET.TEST_PERCENT or self.test_share
        shares = {"train": (1 - test) * (1 - self.val_share), "val": (1 - test) * self.val_share, "test": test}

        def make() -> Parts:
            if fold < 0:
                return split_stratified(items, shares, seed=seed)
            folds = deal_folds(items, FOLDS, seed=seed)
            held_out = folds.pop(fold)
            return {**self._split_val([item for one in folds for item in one], seed), "test": held_out}

        name = f"split_{kind}-seed_{seed}" + (f"-test_{test:g}" if cfg.DATASET.TEST_PERCENT else "")
        return stored_split(self.folder, cfg, name, items, make, recipe={"seed": seed, **shares})

    def _official(self, cfg: CfgNode, items: Sequence[Item], official: Mapping[str, Sequence[str]]) -> Parts:
        """The authors' parts; a missing validation part is drawn from train, once."""
        part_of = self._index(official)
        parts: Parts = {"train": [], "val": [], "test": []}
        unlisted = []
        start = len(str(self.folder)) + 1
        for item in items:
            part = part_of.get(item.impath[start:].replace(os.sep, "/").casefold())
            (unlisted if part is None else parts[part]).append(item)
        if unlisted:
            listed = some([item.impath for item in unlisted])
            logger.warning("%s: %d images are in no part of %s: %s", self.name, len(unlisted), self.official_files, listed)
        if official.get("val"):
            return parts
        seed, train = cfg.DATASET.SPLIT_SEED, parts["train"]
        recipe = {"seed": seed, "val": self.val_share}
        name = f"split_official_val-seed_{seed}"
        return parts | stored_split(self.folder, cfg, name, train, lambda: self._split_val(train, seed), recipe=recipe)

    def _index(self, official: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Image path in lower case -> part."""
        part_of: dict[str, str] = {}
        doubled = [
            f"{name} in {part_of[name.casefold()]} and {part}"
            for part, names in official.items()
            for name in names
            if part_of.setdefault(name.casefold(), part) != part
        ]
        if doubled:
            raise ValueError(f"{self.name}: {len(doubled)} image(s) in two parts of {self.official_files}: {some(doubled)}")
        return part_of

    def _split_val(self, items: Iterable[Item], seed: int) -> Parts:
        return split_stratified(items, {"train": 1 - self.val_share, "val": self.val_share}, seed=seed)


def deal_folds(items: Iterable[Item], count: int, *, seed: int) -> list[list[Item]]:
    """Deal the shuffled images of one class after the other round the folds.

    Folds differ by at most one image in size, and by at most one image of any class.
    """
    rng = random.Random(seed)
    by_class: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda item: Path(item.impath).as_posix()):
        by_class.setdefault(item.label, []).append(item)
    dealt = [item for label in sorted(by_class) for item in rng.sample(by_class[label], len(by_class[label]))]
    return [dealt[first::count] for first in range(count)]

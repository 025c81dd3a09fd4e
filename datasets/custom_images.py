"""CustomImages: a user's own pictures, as a folder, a CSV or JSONL file, or a split file (`train.py --data PATH`).

docs/CUSTOM_DATA.md shows the forms. Which one was found is logged; what is none of them is refused.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from clip_ext.label_ring import EMOTION6_RING, MIKELS_RING, problems_with_ring
from datasets.base import Item, NamedClassesDataset, check_classes, subsample_classes
from datasets.image_files import UNLABELLED, ImageList, some
from datasets.image_lists import build_items, read_images
from datasets.splits import PARTS, Parts, check_split_keys, split_stratified, stored_few_shots, stored_split

logger = logging.getLogger(__name__)

DEFAULT_TEST_SHARE = 0.2  # of all pictures, where nothing else is said
SPLIT_CHOICES = ("auto", "seeded")
TIES_CHOICES = ("auto", "first", "drop")

Draw = Callable[[Sequence[Item], Mapping[str, float]], Parts]  # items and shares -> parts


def split_items(items: Sequence[tuple[str, Item]], settings: CfgNode, draw: Draw) -> tuple[Parts, str]:
    """Complete the given parts: first test, then val, is split off the labelled train pictures where it is missing.

    Args:
        items: (split or "", item).
        settings: The node `DATASET`; SPLIT, TEST_PERCENT and VAL_PERCENT are read.
        draw: Divides items by shares.
    Returns:
        Train, val and test, and the kind of split: `given`, `seeded`, `given + seeded`, or `none` without labels.
    """
    parts: Parts = {part: [] for part in PARTS}
    for split, item in items:
        parts[split if split and settings.SPLIT != "seeded" else "train"].append(item)
    if all(item.label == UNLABELLED for _, item in items):
        return {**parts, "test": parts["test"] or parts["train"]}, "none"
    shares = {"test": 0.0 if parts["test"] else settings.TEST_PERCENT or DEFAULT_TEST_SHARE}
    shares["val"] = 0.0 if parts["val"] else (1 - shares["test"]) * settings.VAL_PERCENT
    labelled = [item for item in parts["train"] if item.label != UNLABELLED]
    if not labelled or not any(shares.values()):
        return parts, "given"
    made = draw(labelled, {"train": 1 - sum(shares.values()), **shares})
    unlabelled = [item for item in parts["train"] if item.label == UNLABELLED]
    kind = "given + seeded" if parts["test"] or parts["val"] else "seeded"
    completed = {"train": made["train"] + unlabelled, "val": parts["val"] + made["val"], "test": parts["test"] + made["test"]}
    # By path, as given parts are: the same pictures in another form train in the same order.
    return {part: sorted(found, key=lambda item: Path(item.impath).as_posix()) for part, found in completed.items()}, kind


def check_parts(parts: Parts, classnames: Sequence[str]) -> None:
    """Refuse what cannot be learned from or measured.

    Raises:
        ValueError: If there is one class only, a class without train pictures, a part without pictures, or a part to test on
            with labels for some pictures only.
    """
    problems = []
    if len(classnames) < 2:
        problems.append(f"there is one class only, {', '.join(classnames)}; classification needs two")
    problems += [f"no picture is left for {part}" for part in ("train", "test") if not parts[part]]
    trained = {item.label for item in parts["train"]}
    missing = [name for label, name in enumerate(classnames) if label not in trained]
    if missing and UNLABELLED not in trained:
        problems.append(f"{len(missing)} classes have no train picture: {some(missing, ', ')}")
    for part in ("val", "test"):
        blank = [item.impath for item in parts[part] if item.label == UNLABELLED]
        if blank and (part == "val" or len(blank) < len(parts[part])):
            problems.append(f"{len(blank)} of {len(parts[part])} {part} pictures have no label, e.g. {blank[0]}")
    if problems:
        raise ValueError(f"own images: {'; '.join(problems)}")


@DATASET_REGISTRY.register()
class CustomImages(NamedClassesDataset):
    """A user's own pictures.

    Without labels, `train_x`, `train_u` and `test` all hold every picture with label -1, so that a label used in a loss fails
    loudly; the classes are those that the user listed.

    Attributes:
        split_kind: `given`, `seeded`, `given + seeded`, or `none` without labels.
    """

    def __init__(self, cfg: CfgNode) -> None:
        settings = cfg.DATASET
        self._check_keys(cfg)
        path = Path(settings.ROOT).expanduser().absolute()
        images = read_images(path, settings)
        logger.info("CustomImages: %s is a %s", path, images.form)
        items = build_items(images, skip_broken=settings.SKIP_BROKEN)
        parts, self.split_kind = split_items(items, settings, lambda *what: _draw_once(cfg, images, *what))
        check_parts(parts, images.classnames)
        self._names = images.classnames
        if any(item.label == UNLABELLED for item in parts["train"]):
            self._refuse_choices(cfg)
        else:
            parts = self._choose(cfg, images, parts)
        logger.info("CustomImages: %d classes (%s), split %s: %s", len(self._names), ", ".join(self._names), self.split_kind,
                    ", ".join(f"{len(found)} {part}" for part, found in parts.items()))  # fmt: skip
        unlabelled = parts["train"] if self.split_kind == "none" else None
        super().__init__(train_x=parts["train"], train_u=unlabelled, val=parts["val"] or None, test=parts["test"])

    @staticmethod
    def _check_keys(cfg: CfgNode) -> None:
        settings = cfg.DATASET
        check_split_keys(cfg)
        allowed = {
            "SPLIT": (settings.SPLIT in SPLIT_CHOICES, " or ".join(SPLIT_CHOICES)),
            "TIES": (settings.TIES in TIES_CHOICES, " or ".join(TIES_CHOICES)),
            "VAL_PERCENT": (0 <= settings.VAL_PERCENT < 1, "a share in [0, 1)"),
            "DOWNLOAD": (not settings.DOWNLOAD, "False: own pictures are at hand"),
        }
        problems = [f"DATASET.{key} is {settings[key]!r}; expected {what}" for key, (fits, what) in allowed.items() if not fits]
        if problems:
            raise ValueError(f"own images: {'; '.join(problems)}")
        if not settings.ROOT:
            raise FileNotFoundError("DATASET.ROOT is empty; name your folder or file with --data PATH")

    @staticmethod
    def _refuse_choices(cfg: CfgNode) -> None:
        """Few shots and half of the classes are chosen by label."""
        settings = cfg.DATASET
        for key, asked in (("SUBSAMPLE_CLASSES", settings.SUBSAMPLE_CLASSES != "all"), ("NUM_SHOTS", settings.NUM_SHOTS > 0)):
            if asked:
                raise ValueError(f"DATASET.{key} is {settings[key]!r}, but {settings.ROOT} has no labels to choose by")

    def _choose(self, cfg: CfgNode, images: ImageList, parts: Parts) -> Parts:
        """Apply NUM_SHOTS and SUBSAMPLE_CLASSES."""
        choice = cfg.DATASET.SUBSAMPLE_CLASSES
        train, val = stored_few_shots(images.folder, cfg, self.split_kind.replace(" ", ""), parts["train"], parts["val"])
        if choice == "all":
            return {"train": train, "val": val, "test": parts["test"]}
        if any("distribution" in row.extras for row in images.rows):
            raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is {choice!r}, but {cfg.DATASET.ROOT} has votes for all classes")
        train, val, test = subsample_classes(choice, train, val, parts["test"])
        check_classes(type(self).__name__, train, test)
        self._names = tuple(name for _, name in sorted({item.label: item.classname for item in train}.items()))
        return {"train": train, "val": val, "test": test}

    @property
    def emotion_ring(self) -> tuple[str, ...]:
        """The ring of the emotions that the classes are named after; () for other classes."""
        rings = (MIKELS_RING, EMOTION6_RING)
        return next((ring for ring in rings if not problems_with_ring(ring, self._names)), ())


def _draw_once(cfg: CfgNode, images: ImageList, items: Sequence[Item], shares: Mapping[str, float]) -> Parts:
    """Divide by class, and keep the result beside the pictures."""
    seed = cfg.DATASET.SPLIT_SEED
    name, recipe = f"split_seeded-seed_{seed}", {"seed": seed, **shares}
    make = functools.partial(split_stratified, items, shares, seed=seed)
    return stored_split(images.folder, cfg, name, items, make, recipe=recipe)

"""`EmotionDataset`: what all emotion data sets do the same way, so that each is a few declarations and a reader.

The files come from the user (access to most sets is gated); docs/DATASETS.md has the tree of each set and its paper.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import DatasetBase
from yacs.config import CfgNode

from clip_ext.label_ring import MIKELS_RING
from datasets.base import Item, resolve_builtin_root
from datasets.emotion_files import Picture, find_entry, join_votes, report_absent
from datasets.emotion_keys import check_keys
from datasets.emotion_splits import SplitRule
from datasets.image_files import find_broken
from datasets.splits import stored_few_shots
from datasets.vote_tables import Votes, reason_to_exclude

logger = logging.getLogger(__name__)

MIKELS_CLASSES = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
NEUTRAL = "neutral"
SHOWN_EXCLUDED = 20


class EmotionDataset(DatasetBase):
    """Images that evoke an emotion, some with the votes of several people.

    Items carry the extras `distribution` (C numbers that sum to 1; zeros without votes) and `has_distribution` (1 or 0).
    A subclass declares what it is and reads its files in `read_pictures` and, if its authors published a split, in
    `read_official`.

    Attributes:
        dataset_dir: Folder below DATASET.ROOT, whatever its case.
        also_named: Other names of that folder.
        layout: What is expected inside, for messages.
        classes: In label order.
        emotion_ring: All emotions in ring order, for distributions of hard labels; trainers read it.
        published_size: Number of images according to the paper.
        has_votes: Whether its files hold votes.
        may_have_neutral: Whether there are votes for it (DATASET.WITH_NEUTRAL).
        ties: What DATASET.TIES auto means for labels that come from votes: `first` in class order, or `drop`.
        test_share: Of all images in a seeded split.
        val_share: Of the images outside test, where no validation part is given.
        folds: Whether the usual protocol is 5-fold (DATASET.FOLD).
        official_files: Where its authors' split is read from; "" = they published none.
        split_kind: `official`, `seeded` or `fold_0` ... `fold_4`.
        excluded: Relative path -> why the image is not used.
    """

    dataset_dir: str = ""
    also_named: Sequence[str] = ()
    layout: str = ""
    classes: Sequence[str] = MIKELS_CLASSES
    emotion_ring: Sequence[str] = MIKELS_RING
    published_size: int = 0
    has_votes: bool = False
    may_have_neutral: bool = False
    ties: str = "first"
    test_share: float = 0.2
    val_share: float = 0.1
    folds: bool = False
    official_files: str = ""
    split_kind: str = ""

    def __init__(self, cfg: CfgNode) -> None:
        self.settings = cfg.DATASET
        check_keys(self, self.settings)
        if self.settings.WITH_NEUTRAL:
            self.classes = (*self.classes, NEUTRAL)
        self.folder = self._find_folder()
        self.excluded: dict[str, str] = {}
        pictures = sorted(self.read_pictures(), key=lambda picture: picture.name)
        if len(pictures) != self.published_size:
            logger.warning("%s: %d images found, %d published", self.name, len(pictures), self.published_size)
        official = self._find_official(pictures)
        items = self._build_items(self._without_broken(pictures))
        rule = SplitRule(self.name, self.folder, self.test_share, self.val_share, self.official_files)
        self.split_kind, parts = rule.split(cfg, items, official)
        train, val = stored_few_shots(self.folder, cfg, self.split_kind, parts["train"], parts["val"])
        self._check_trained(train)
        super().__init__(train_x=train, val=val, test=parts["test"])
        self._log_summary(items)

    # What a set does in its own way.

    def read_pictures(self) -> list[Picture]:
        """All images of the set, in any order."""
        raise NotImplementedError

    def read_official(self) -> Mapping[str, Sequence[str]] | None:
        """The authors' split: part -> image paths relative to the data set's folder; None if its files are not there."""
        return None

    # The class list comes from the declaration, so that a class without an image keeps its place.

    @property
    def name(self) -> str:
        """The registered name."""
        return type(self).__name__

    @property
    def classnames(self) -> list[str]:
        return list(self.classes)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def lab2cname(self) -> dict[int, str]:
        return dict(enumerate(self.classes))

    # Reading.

    def require(self, *names: str) -> Path:
        """The first entry of the data set's folder that has one of these names, whatever its case.

        Raises:
            FileNotFoundError: If there is none (names DATASET.ROOT, the absolute path and what is expected).
        """
        path = next((path for name in names if (path := find_entry(self.folder, name))), None)
        if path is None:
            raise self._missing(f"{self.folder} has no {' or '.join(names)}; expected {self.layout}")
        return path

    def join_votes(self, files: Mapping[str, Picture], votes: Votes, source: Path) -> list[Picture]:
        """Give every image its row of votes; see `emotion_files.join_votes`."""
        return join_votes(files, votes, source, skip_absent=self.settings.SKIP_BROKEN)

    def _find_folder(self) -> Path:
        root = resolve_builtin_root(self.settings.ROOT, self.name)
        found = (find_entry(root, name) for name in (self.dataset_dir, *self.also_named))
        folder = next((path for path in found if path is not None and path.is_dir()), None)
        if folder is None:
            raise self._missing(f"expected {root / self.dataset_dir} with {self.layout}")
        return folder

    def _missing(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"DATASET.ROOT is {self.settings.ROOT!r}: {self.name}: {what}. docs/DATASETS.md says where to get it"
        )

    def _find_official(self, pictures: Iterable[Picture]) -> Mapping[str, Sequence[str]] | None:
        """The authors' parts if DATASET.SPLIT and DATASET.FOLD want them and they are there."""
        if self.settings.SPLIT == "seeded" or self.settings.FOLD >= 0:
            return None
        official = self.read_official()
        if official is None:
            if self.settings.SPLIT == "official":
                raise self._missing(f"DATASET.SPLIT is 'official', but {self.folder} lacks {self.official_files}")
            return None
        known = {picture.name.casefold() for picture in pictures}
        absent = [name for names in official.values() for name in names if name.casefold() not in known]
        report_absent(absent, f"{self.name}: {self.official_files}", skip=self.settings.SKIP_BROKEN)
        return official

    def _without_broken(self, pictures: Sequence[Picture]) -> list[Picture]:
        """All pictures, or with DATASET.SKIP_BROKEN those that can be decoded."""
        if not self.settings.SKIP_BROKEN:
            return list(pictures)
        broken = find_broken(self.folder / picture.name for picture in pictures)
        self.excluded |= {path.relative_to(self.folder).as_posix(): "unreadable" for path in broken}
        return [picture for picture in pictures if picture.name not in self.excluded]

    # Labels and distributions.

    def _build_items(self, pictures: Iterable[Picture]) -> list[Item]:
        """Items of the images that have a label; the others are listed in the log."""
        items = []
        for picture in pictures:
            label, reason = self._label_of(picture)
            if reason:
                self.excluded[picture.name] = reason
                continue
            total = math.fsum(picture.votes)
            distribution = tuple(vote / total for vote in picture.votes) or (0.0,) * len(self.classes)
            extras = {"distribution": distribution, "has_distribution": int(bool(picture.votes))}
            items.append(Item(str(self.folder / picture.name), label, classname=self.classes[label], extras=extras))
        for reason in sorted(set(self.excluded.values())):
            names = [name for name, why in self.excluded.items() if why == reason]
            more = f" and {len(names) - SHOWN_EXCLUDED} more" if len(names) > SHOWN_EXCLUDED else ""
            shown = ", ".join(names[:SHOWN_EXCLUDED])
            logger.warning("%s: %d images excluded (%s): %s%s", self.name, len(names), reason, shown, more)
        return items

    def _label_of(self, picture: Picture) -> tuple[int, str]:
        """Label, and why the image cannot be used ("" if it can)."""
        votes = picture.votes
        reason = reason_to_exclude(votes) if votes else ""
        if reason:
            return -1, reason
        if picture.emotion and self.settings.LABEL_SOURCE == "folder":
            return self.classes.index(picture.emotion), ""
        if not votes:
            return -1, "no votes"
        first = votes.index(max(votes))
        ties = self.ties if self.settings.TIES == "auto" else self.settings.TIES
        return first, "tied votes" if ties == "drop" and votes.count(votes[first]) > 1 else ""

    def _check_trained(self, train: Iterable[Item]) -> None:
        """Every emotion needs a training image, except neutral, which is no search keyword."""
        trained = {item.label for item in train}
        missing = [name for label, name in enumerate(self.classes) if label not in trained and name != NEUTRAL]
        if missing:
            raise ValueError(
                f"data set {self.name} in {self.folder} has no training image of {len(missing)} classes: {', '.join(missing)}"
            )

    def _log_summary(self, items: Sequence[Item]) -> None:
        sizes = "/".join(str(len(part)) for part in (self.train_x, self.val, self.test))
        voted = sum(item.extras["has_distribution"] for item in items)
        logger.info(
            "%s: %d images, %d with votes; %s split, train/val/test %s", self.name, len(items), voted, self.split_kind, sizes
        )

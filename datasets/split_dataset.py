"""`SplitDataset`: what all benchmarks do the same way, so that each is a few declarations.

Folders, class names and split files follow the public layout of CoOp (K. Zhou et al., "Learning to Prompt for
Vision-Language Models", IJCV 2022), so that data prepared for CoOp and its descendants is read as it lies.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from dassl.data.datasets import DatasetBase
from yacs.config import CfgNode

from datasets.base import Item, check_classes, subsample_classes
from datasets.download import TorchvisionSource, check_online
from datasets.image_files import find_broken, list_folders, list_images, some
from datasets.splits import (
    Parts,
    Row,
    build_items,
    check_split_keys,
    read_split_json,
    split_stratified,
    stored_few_shots,
    stored_split,
)

logger = logging.getLogger(__name__)

OFFICIAL_VAL_SHARE = 0.2  # of a published training part that comes without a validation part


class SplitDataset(DatasetBase):
    """A benchmark: images in a folder, and one of three ways to split them (DATASET.SPLIT).

    `coop` reads the split that CoOp published, `official` the one of the data set's authors, `seeded` makes one by
    SPLIT_SEED; `auto` takes the first that is there. Only the first gives numbers that may stand beside CoOp's.

    Attributes:
        dataset_dir: Folder below DATASET.ROOT.
        image_dirs: Image folders below it that are looked for, in this order: CoOp's layout, then torchvision's.
        expects: Folders that the image folder must have.
        official_list: Split file of the authors, relative to the folder that holds the image folder; "" = none.
        source: How torchvision fetches it; None: it cannot.
        by_hand: What goes where, for a data set that torchvision cannot fetch.
        skipped_folders: Class folders that are no class.
        renamed: Class folder -> class name, where they differ.
        shares: Of a seeded split.
        comparable: Split kinds whose numbers may stand beside CoOp's.
        split_kind: The kind that was used.
    """

    image_dirs: Sequence[str] = ("images",)
    expects: Sequence[str] = ()
    official_list: str = ""
    source: TorchvisionSource | None = None
    by_hand: str = "docs/DATASETS.md says what goes where"
    skipped_folders: Sequence[str] = ()
    renamed: Mapping[str, str] = {}
    shares: Mapping[str, float] = {"train": 0.5, "val": 0.2, "test": 0.3}
    comparable: Sequence[str] = ("coop",)
    split_kind: str = ""

    def __init__(self, cfg: CfgNode) -> None:
        check_split_keys(cfg)
        self.folder = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.dataset_dir
        self.images = self._find_images(cfg.DATASET)
        self.skip_absent = cfg.DATASET.SKIP_BROKEN
        self.split_kind = self._choose_kind(cfg.DATASET.SPLIT)
        if self.split_kind not in self.comparable:
            logger.warning("%s split: not comparable with CoOp numbers", self.split_kind)
        parts = self._read_parts(cfg)
        train, val = self.choose_shots(cfg, parts["train"], parts["val"])
        train, val, test = subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, val, parts["test"])
        check_classes(self.name, train, test)
        super().__init__(train_x=train, val=val, test=test)

    @property
    def name(self) -> str:
        """The registered name."""
        return type(self).__name__

    # What a benchmark may do in its own way.

    @property
    def coop_file(self) -> Path:
        """The file that CoOp's split needs."""
        return self.folder / f"split_zhou_{self.name}.json"

    @property
    def official_file(self) -> Path | None:
        """The file or folder that the authors' split needs, if they published one."""
        return self.base / self.official_list if self.official_list else None

    def read_coop(self) -> Parts:
        """Items of CoOp's split."""
        return read_split_json(self.coop_file, self.images, skip_absent=self.skip_absent)

    def read_official(self) -> Mapping[str, Sequence[Row]]:
        """Rows of the authors' split: `train`, `test` and, if they published one, `val`."""
        raise NotImplementedError

    def list_rows(self) -> Sequence[Row]:
        """Rows of all images, for a seeded split; a class per folder, numbered in the order of their names."""
        rows = list_class_folders(self.images, {"all": ""}, skipped=self.skipped_folders)["all"]
        return [(path, label, self.renamed.get(folder, folder)) for path, label, folder in rows]

    def choose_shots(self, cfg: CfgNode, train: list[Item], val: list[Item]) -> tuple[list[Item], list[Item]]:
        """The images that DATASET.NUM_SHOTS leaves."""
        return stored_few_shots(self.folder, cfg, self.split_kind, train, val)

    # What all do the same way.

    @property
    def base(self) -> Path:
        """The folder that holds the image folder, and the authors' lists beside it."""
        return self.images.parent

    def build(self, rows: Mapping[str, Sequence[Row]], source: Path) -> Parts:
        """Items of rows that `source` lists."""
        return build_items(rows, self.images, source=source, skip_absent=self.skip_absent)

    def _find_images(self, settings: CfgNode) -> Path:
        """The image folder, after a download if that is needed and wanted."""
        found = self._existing_images() if settings.ROOT else None  # an empty ROOT is no wish for the working directory
        if found is None and settings.DOWNLOAD and settings.ROOT:
            check_online(self.name)
            if self.source is None:
                raise ValueError(f"DATASET.DOWNLOAD is True, but torchvision cannot fetch {self.name}: {self.by_hand}")
            self.source.fetch(self.folder)
            self.unpack()
            found = self._existing_images()
        if found is None:
            places = " or ".join(str(self.folder / name) for name in self.image_dirs)
            inside = f" with {' and '.join(self.expects)} inside" if self.expects else ""
            hint = "DATASET.DOWNLOAD True fetches it through torchvision" if self.source else self.by_hand
            message = f"DATASET.ROOT is {settings.ROOT!r}: {self.name} expects its images in {places}{inside}; {hint}"
            raise FileNotFoundError(message)
        return found

    def unpack(self) -> None:
        """Turn what torchvision fetched into image files, where it is something else."""

    def _existing_images(self) -> Path | None:
        for name in self.image_dirs:
            images = self.folder / name
            if images.is_dir() and all((images / inside).is_dir() for inside in self.expects):
                return images
        return None

    def _choose_kind(self, wanted: str) -> str:
        """The kind of split that DATASET.SPLIT means here."""
        files = {"coop": self.coop_file}
        if self.official_file is not None:
            files["official"] = self.official_file
        if wanted == "auto":
            return next((kind for kind, file in files.items() if file.exists()), "seeded")
        if wanted == "official" and wanted not in files:
            raise ValueError(f"DATASET.SPLIT is 'official': {self.name} has no official split; expected coop, seeded or auto")
        if wanted in files and not files[wanted].exists():
            raise FileNotFoundError(f"DATASET.SPLIT is {wanted!r}, but {files[wanted]} is missing; {self.by_hand}")
        return wanted

    def _read_parts(self, cfg: CfgNode) -> Parts:
        """Train, val and test of the chosen kind."""
        read = {"coop": self.read_coop, "official": lambda: self._official(cfg), "seeded": lambda: self._seeded(cfg)}
        parts = {"train": [], "val": [], "test": [], **read[self.split_kind]()}
        if not any(parts.values()):
            raise FileNotFoundError(f"DATASET.ROOT is {cfg.DATASET.ROOT!r}: {self.images} holds no image of {self.name}")
        return self._without_broken(parts) if self.skip_absent else parts

    def _without_broken(self, parts: Parts) -> Parts:
        broken = find_broken(Path(item.impath) for items in parts.values() for item in items)
        if broken:
            listed = some([f"{path} ({reason})" for path, reason in broken.items()])
            logger.warning("Dropped %d unreadable image(s): %s", len(broken), listed)
        return {part: [item for item in items if Path(item.impath) not in broken] for part, items in parts.items()}

    def _official(self, cfg: CfgNode) -> Parts:
        parts = self.build(self.read_official(), self.official_file or self.images)
        if "val" in parts:
            return parts
        shares = {"train": 1 - OFFICIAL_VAL_SHARE, "val": OFFICIAL_VAL_SHARE}
        return {**self._split(cfg, "split_official_val", parts["train"], shares), "test": parts["test"]}

    def _seeded(self, cfg: CfgNode) -> Parts:
        items = self.build({"all": self.list_rows()}, self.images)["all"]
        wanted = cfg.DATASET.TEST_PERCENT or self.shares["test"]
        rest = (1 - wanted) / (1 - self.shares["test"])  # the other parts keep their proportion
        shares = {part: wanted if part == "test" else share * rest for part, share in self.shares.items()}
        return self._split(cfg, "split_seeded", items, shares)

    def _split(self, cfg: CfgNode, name: str, items: Sequence[Item], shares: Mapping[str, float]) -> Parts:
        """Split by class, once: stored beside the data."""
        seed = cfg.DATASET.SPLIT_SEED
        recipe = {"seed": seed, **shares}
        name = f"{name}-seed_{seed}" + (f"-test_{shares['test']:g}" if cfg.DATASET.TEST_PERCENT and "test" in shares else "")
        return stored_split(self.folder, cfg, name, items, lambda: split_stratified(items, shares, seed=seed), recipe=recipe)


def list_class_folders(top: Path, parts: Mapping[str, str], *, skipped: Sequence[str] = ()) -> dict[str, list[Row]]:
    """Rows of parts that are folders of class folders; a class bears the name of its folder.

    Args:
        top: Folder that the rows' paths are relative to.
        parts: Part -> its folder below `top`; "" = `top` itself.
        skipped: Class folders that are no class.
    Returns:
        Part -> rows sorted by class and path; classes are numbered in the order of all folder names.
    """
    found = {part: [path for path in list_folders(top / name) if path.name not in skipped] for part, name in parts.items()}
    labels = {name: label for label, name in enumerate(sorted({path.name for paths in found.values() for path in paths}))}
    return {
        part: [
            (f"{folder}/{image.name}", labels[path.name], path.name)
            for path in paths
            for folder in [path.relative_to(top).as_posix()]
            for image in list_images(path)[0]
        ]
        for part, paths in found.items()
    }


def load_mat(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a MATLAB file by name."""
    from scipy.io import loadmat  # slow to import, and needed by two data sets only

    return loadmat(path)

"""WikiArt: 81,446 paintings in 27 styles, what the style encoder of GatedBLIP2 is pre-trained on.

Pictures and lists are those of W. R. Tan et al., "Improved ArtGAN for Conditional Synthesis of Natural Image and Artwork", IEEE
Transactions on Image Processing 2019. They may be used for non-commercial research only; none is shipped here.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from torchvision.datasets.folder import IMG_EXTENSIONS
from yacs.config import CfgNode

from clip_ext.style_names import NON_ART, StyleNames, wikiart_styles
from datasets.base import Item, NamedClassesDataset, check_classes, choose_few_shots, resolve_builtin_root
from datasets.csv_rows import read_rows
from datasets.data_folders import IDLE, find_image_folders, problems_with_idle_keys
from datasets.image_files import find_broken
from datasets.row_faults import Faults
from datasets.text_decode import FileForm

logger = logging.getLogger(__name__)

USUAL_FOLDERS = ("wikiart", "WikiArt", "")
LIST_FOLDERS = ("", "wikiart_csv")
IMAGE_FOLDERS = ("", "images", "wikiart")
LISTS = {"train": "style_train.csv", "val": "style_val.csv"}
OTHERS_KEYS = {key: values for key, values in IDLE.items() if key not in ("NUM_SHOTS", "SKIP_BROKEN")}
VAL_AS_TEST = "val as test"

Listed = tuple[Path, int]  # a picture and its class


@DATASET_REGISTRY.register()
class WikiArt(NamedClassesDataset):
    """The 27 styles; with DATASET.NON_ART photographs as a 28th class, in each part at most one per 27 paintings.

    The published lists have a train and a val part; the second is also what is tested on, so every test figure is a figure of
    the part that chose the model. Every picture is decoded once: unreadable ones are an error that lists them, and with
    DATASET.SKIP_BROKEN they are left out.
    """

    dataset_dir = "wikiart"
    split_kind = VAL_AS_TEST

    def __init__(self, cfg: CfgNode) -> None:
        settings = cfg.DATASET
        problems = problems_with_idle_keys(settings, "paintings by style", OTHERS_KEYS)
        if problems:
            raise ValueError(f"data set WikiArt: {'; '.join(problems)}")
        styles = wikiart_styles().names
        self._names = (*styles, *((NON_ART,) if settings.NON_ART else ()))
        items = {
            part: [Item(str(path), label, classname=self._names[label]) for path, label in rows]
            for part, rows in self._read_parts(settings, styles).items()
        }
        check_classes("WikiArt", items["train"], items["val"])
        logger.warning("WikiArt has no test part: every test figure of this run is a VALIDATION figure")
        train, val = choose_few_shots(items["train"], items["val"], shots=settings.NUM_SHOTS, seed=cfg.SEED)
        super().__init__(train_x=train, val=val, test=items["val"])

    def _read_parts(self, settings: CfgNode, styles: Sequence[str]) -> dict[str, list[Listed]]:
        self.folder, lists = find_lists(resolve_builtin_root(settings.ROOT, "WikiArt"))
        faults = Faults()
        images = find_image_folders(self.folder, "", IMAGE_FOLDERS, "DATASET.ROOT")
        parts = {part: list(read_list(file, images, styles, faults)) for part, file in lists.items()}
        if settings.NON_ART:
            drawn = draw_photographs(Path(settings.NON_ART).expanduser(), parts, len(styles), seed=settings.SPLIT_SEED)
            parts = {part: [*rows, *((path, len(styles)) for path in drawn[part])] for part, rows in parts.items()}
        return without_unreadable(parts, faults, skip=settings.SKIP_BROKEN)


def find_lists(root: Path) -> tuple[Path, dict[str, Path]]:
    """Return the folder of the data set and its two lists by part.

    Args:
        root: DATASET.ROOT; the usual folders below it, and it itself, are searched.
    Raises:
        FileNotFoundError: If no folder has both (names all places).
    """
    for name in USUAL_FOLDERS:
        for inside in LIST_FOLDERS:
            found = {part: root / name / inside / file for part, file in LISTS.items()}
            if all(path.is_file() for path in found.values()):
                return root / name, found
    places = ", ".join(str(root / name) for name in USUAL_FOLDERS)
    raise FileNotFoundError(
        f"DATASET.ROOT is {str(root)!r}: WikiArt expects {' and '.join(LISTS.values())} (rows `Style/file.jpg,index`) in "
        f"one of {places}, or in wikiart_csv inside, beside the folders of the styles; other lists of paintings: CustomImages"
    )


def read_list(file: Path, folders: Sequence[Path], styles: Sequence[str], faults: Faults) -> Iterator[Listed]:
    """Yield (path, label) of a list's rows; the path of a picture that is not there is where it was expected first.

    Args:
        file: Rows `Style/file.jpg,index` without a header.
        folders: Searched for the pictures, in this order.
        styles: Names of the labels.
        faults: Takes rows that are no such rows, and labels that are not those of the row's folder.
    """
    names, expected = StyleNames(styles), f"no row `Style/file.jpg,index` with an index from 0 to {len(styles) - 1}"
    for line, (*name, index) in read_rows(file, FileForm("DATASET").decode(file)):
        relative, origin = ",".join(name), f"{file.name}, line {line}"
        label = int(index) if index.isdecimal() else -1
        if not relative or not 0 <= label < len(styles):
            faults.add(expected, f"{origin}: {','.join([*name, index])}")
        elif _label_of_folder(relative, names) not in (label, None):
            faults.add("index of another style than the folder's", f"{origin}: {relative} has {label}, {styles[label]}")
        else:
            places = [folder / relative for folder in folders]
            yield next((path for path in places if path.is_file()), places[0]), label


def _label_of_folder(relative: str, names: StyleNames) -> int | None:
    """The label that a picture's folder names, None if it names no style."""
    folder = relative.rpartition("/")[0].rpartition("/")[2]
    try:
        return names.index(folder) if folder else None
    except ValueError:
        return None


def draw_photographs(
    folder: Path, paintings: Mapping[str, Sequence[Listed]], n_styles: int, *, seed: int
) -> dict[str, list[Path]]:
    """Draw photographs for each part: one per `n_styles` paintings, or all of them in proportion if there are fewer.

    Args:
        folder: DATASET.NON_ART; pictures may lie at any depth.
        paintings: By part.
        n_styles: A part's share, so that photographs are not more than a style is on average.
        seed: DATASET.SPLIT_SEED.
    Raises:
        ValueError: If that leaves none to learn from.
    """
    found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(IMG_EXTENSIONS) and path.is_file())
    wanted = {part: len(rows) // n_styles for part, rows in paintings.items()}
    share = min(1.0, len(found) / max(1, sum(wanted.values())))
    counts = {part: int(count * share) for part, count in wanted.items()}
    if not counts["train"]:
        raise ValueError(
            f"DATASET.NON_ART (--non-art) is {str(folder)!r} with {len(found)} pictures, none of them for training; expected "
            f"photographs, about one per {n_styles} paintings ({sum(map(len, paintings.values()))} here)"
        )
    chosen = iter(random.Random(seed).sample(found, len(found)))
    return {part: [next(chosen) for _ in range(count)] for part, count in counts.items()}


def without_unreadable(parts: Mapping[str, Sequence[Listed]], faults: Faults, *, skip: bool) -> dict[str, list[Listed]]:
    """Decode every picture once and return the rows of those that can be read.

    Args:
        parts: Rows by part.
        faults: What is wrong with the lists; unreadable pictures come to it.
        skip: DATASET.SKIP_BROKEN: leave out and log, instead of stopping.
    Raises:
        ValueError: With everything that is wrong.
    """
    broken = find_broken(path for rows in parts.values() for path, _ in rows)
    for path, reason in broken.items():
        faults.add("unreadable picture", f"{path}: {reason}")
    if faults:
        listed = "\n  ".join(faults.lines())
        if not skip:
            raise ValueError(f"WikiArt: {faults.count} problem(s)\n  {listed}\nDATASET.SKIP_BROKEN True leaves these rows out")
        logger.warning("WikiArt, left out:\n  %s", listed)
        for path, reason in broken.items():
            logger.info("unreadable: %s (%s)", path, reason)
    return {part: [row for row in rows if row[0] not in broken] for part, rows in parts.items()}

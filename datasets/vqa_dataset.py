"""`VQADataset`: what all data sets of questions about images do the same way, so that each is a reader and its file names."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from clip_ext.style_names import StyleNames
from datasets.base import Item, NamedClassesDataset
from datasets.data_folders import (
    ImageFinder,
    discover,
    find_folder,
    find_image_folders,
    problems_with_idle_keys,
    problems_with_words,
)
from datasets.text_decode import FileForm, parse_columns
from datasets.vqa_checks import Asked, check_parts
from datasets.vqa_files import read_questions
from datasets.vqa_records import ALIASES, DEFAULT_TYPE, Reading, Record

logger = logging.getLogger(__name__)

NODE = "DATASET.VQA"
PARTS = ("train", "val", "test")
STEMS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
IMAGE_FOLDERS = ("images", "Images", "")
CHOICES = {"MISSING": ("error", "skip"), "MISSING_TEST": ("val", "hold_out")}


class VQADataset(NamedClassesDataset):
    """Questions about images, one `Item` each; its label is the index of its question type among the sorted types of all parts.

    The extras are those of `datasets.vqa_records`. Without a train file the test questions stand in train too, so that
    the types are known; `split_kind` then is `tests only`, and a trainer that learns refuses that.

    Attributes:
        usual_folders: Folders below DATASET.ROOT that are looked for when DATASET.VQA.DIR is empty; "" = ROOT itself.
        prefixes: Of usual file names, beside the folder's own name and an underscore.
        image_folders: Folders that image paths are relative to, where DATASET.VQA.IMAGES names none.
        columns: Ours -> theirs, where the published files have names of their own.
        style_names: Allowed styles, which may be written in other ways too; None allows all.
        published_sizes: Part -> published number of questions.
        labels_are_question_types: No texts describe such labels.
        folder: Where the files lie.
        form: How they are written.
        split_kind: `given`; `val as test` (its figures are those of the validation part); `hold_out`; `tests only`.
    """

    usual_folders: Sequence[str] = ("",)
    prefixes: Sequence[str] = ("",)
    image_folders: Sequence[str] = IMAGE_FOLDERS
    columns: Mapping[str, str] = {}
    style_names: StyleNames | None = None
    published_sizes: Mapping[str, int] = {}
    labels_are_question_types = True

    def __init__(self, cfg: CfgNode) -> None:
        self._check_keys(cfg)
        settings = cfg.DATASET.VQA
        self.folder = find_folder(cfg, "VQA", self.usual_folders, type(self).__name__)
        skip = settings.MISSING == "skip"
        try:
            self.form = FileForm(NODE, settings.ENCODING)
            parts = self.read_parts(settings)
            self._note_sizes(parts)
            found = check_parts(parts, ImageFinder(self.find_images(settings)), skip=skip, styles=self.style_names)
            complete, self.split_kind = complete_parts(found, cfg)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"data set {type(self).__name__} in {self.folder}: {error}") from error
        self._names = tuple(sorted({record.question_type or DEFAULT_TYPE for rows in complete.values() for _, record in rows}))
        items = self._build_items(complete)
        counts = ", ".join(f"{len(found)} {part}" for part, found in items.items())
        logger.info("%s: %s, split %s: %s questions", type(self).__name__, self.folder, self.split_kind, counts)
        super().__init__(train_x=items["train"], val=items.get("val"), test=items["test"])

    # What a data set may replace.

    def read_parts(self, settings: CfgNode) -> dict[str, Sequence[Reading]]:
        """Return part -> readings, for the parts that there are files for.

        Raises:
            ValueError: For everything that is wrong with the files (names them).
        """
        named = parse_columns(settings.COLUMNS, tuple(ALIASES), NODE)
        form = replace(self.form, columns={**self.columns, **named})
        files = {part: self.find_files(part, settings[part.upper()]) for part in PARTS}
        parts: dict[str, Sequence[Reading]] = {}
        problems = []
        for part, paths in files.items():
            try:
                rows = read_questions(paths, form, answered=part != "test") if paths else []
                parts |= {part: [self._adapt(row) for row in rows]} if paths else {}
            except (ValueError, FileNotFoundError) as error:
                problems.append(f"DATASET.VQA.{part.upper()}: {error}")
        if not any(files.values()):
            endings = ", ".join(SUFFIXES)
            problems.append(f"no {', '.join(PARTS)} with the ending {endings}; DATASET.VQA.TRAIN, VAL and TEST name files")
        if problems:
            raise ValueError("\n  ".join(problems))
        return parts

    def find_files(self, part: str, named: str) -> list[Path]:
        """Return the files of a part: those that its key names, else `<part>` or `<folder>_<part>` with a known ending.

        Raises:
            ValueError: If several fit.
        """
        if named:
            return [self.folder / name.strip() for name in named.split(",")]
        prefixes = dict.fromkeys((*self.prefixes, f"{self.folder.name}_"))
        stems = [f"{prefix}{stem}" for stem in STEMS[part] for prefix in prefixes]
        return discover(self.folder, stems, SUFFIXES, part, f"{NODE}.{part.upper()}")

    def find_images(self, settings: CfgNode) -> list[Path]:
        """Return the folders that image paths are relative to.

        Raises:
            FileNotFoundError: If DATASET.VQA.IMAGES names none.
        """
        return find_image_folders(self.folder, settings.IMAGES, self.image_folders, f"{NODE}.IMAGES")

    def adapt(self, record: Record) -> Reading:
        """Return a row as this data set wants it, or what is wrong with it; here the row itself."""
        return record

    def _adapt(self, row: Reading) -> Reading:
        return self.adapt(row) if isinstance(row, Record) else row

    def _note_sizes(self, parts: Mapping[str, Sequence[Reading]]) -> None:
        for part, readings in parts.items():
            size = self.published_sizes.get(part, len(readings))
            if len(readings) != size:
                found = f"{part} has {len(readings):,} questions; published are {size:,}"
                logger.warning("%s: %s", type(self).__name__, found)

    @classmethod
    def _check_keys(cls, cfg: CfgNode) -> None:
        """Refuse values that are impossible or that questions have no use for."""
        node, own = cfg.DATASET, cfg.DATASET.VQA
        problems = problems_with_words(NODE, own, CHOICES) + problems_with_idle_keys(node, "data sets of questions")
        if not 0 < node.VAL_PERCENT < 1 and own.MISSING_TEST == "hold_out":
            problems.append(f"DATASET.VAL_PERCENT is {node.VAL_PERCENT}; expected a share in (0, 1), which hold_out keeps")
        if problems:
            raise ValueError(f"data set {cls.__name__}: " + "; ".join(problems))

    def _build_items(self, parts: Mapping[str, Sequence[Asked]]) -> dict[str, list[Item]]:
        label_of = {name: label for label, name in enumerate(self._names)}
        with_turns = any(record.turns for rows in parts.values() for _, record in rows)
        return {part: [_to_item(row, part, number, label_of, with_turns) for number, row in enumerate(rows, 1)]
                for part, rows in parts.items()}  # fmt: skip


def _to_item(row: Asked, part: str, number: int, label_of: Mapping[str, int], with_turns: bool) -> Item:
    path, record = row
    extras = record.extras(with_turns=with_turns)
    extras["question_id"] = extras["question_id"] or f"{part}-{number}"
    kind = extras["question_type"]
    return Item(str(path), label_of[kind], classname=kind, extras=extras)


def complete_parts(parts: Mapping[str, list[Asked]], cfg: CfgNode) -> tuple[dict[str, list[Asked]], str]:
    """Return train, test and, if there is one, val; and how they came about (see `VQADataset.split_kind`).

    Args:
        parts: The parts that there are files for.
        cfg: Read for DATASET.VQA.MISSING_TEST, VAL_PERCENT and SPLIT_SEED.
    Raises:
        ValueError: If there is nothing to test on.
    """
    train, val, test = (parts.get(part) for part in PARTS)
    settings, kind = cfg.DATASET, "given"
    if test is None and cfg.DATASET.VQA.MISSING_TEST == "hold_out" and train:
        train, held = hold_out(train, settings.VAL_PERCENT, settings.SPLIT_SEED)
        val, test, kind = (held, val, "hold_out") if val else (None, held, "hold_out")
    elif test is None and val is None:
        raise ValueError("no file for val or test; name one, or set DATASET.VQA.MISSING_TEST hold_out to keep a share of train")
    elif test is None:
        test, kind = val, "val as test"
        logger.warning("There is no test file: every test figure of this run is a VALIDATION figure (DATASET.VQA.MISSING_TEST)")
    if train is None:
        train, kind = test, "tests only"
    return {"train": train, **({"val": val} if val else {}), "test": test}, kind


def hold_out(rows: Sequence[Asked], share: float, seed: int) -> tuple[list[Asked], list[Asked]]:
    """Divide questions by image: all questions about an image fall on one side, wherever the images lie.

    Args:
        rows: In any order.
        share: Of the images, (0, 1); at least one is held out and one stays.
        seed: DATASET.SPLIT_SEED.
    Returns:
        The questions that stay and those held out, each in their order.
    Raises:
        ValueError: If there is one image only.
    """
    names = {record.images: path for path, record in rows}
    paths = list(dict.fromkeys(names[images] for images in sorted(names)))
    if len(paths) < 2:
        raise ValueError("one image cannot be divided; DATASET.VQA.MISSING_TEST hold_out needs two")
    count = min(max(round(share * len(paths)), 1), len(paths) - 1)
    held = set(random.Random(seed).sample(paths, count))
    return [row for row in rows if row[0] not in held], [row for row in rows if row[0] in held]

"""`CaptionDataset`: what all data sets of captions do the same way, so that each is its file names and what is odd about it.

Training reads text alone (ViECap, arXiv 2307.16525): no picture of the train part is opened, or needs to be there.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import Datum
from yacs.config import CfgNode

from datasets.base import Item, NamedClassesDataset
from datasets.caption_checks import Shown, check_parts
from datasets.caption_reading import read_captions_of
from datasets.caption_records import ALIASES, CaptionReading, CaptionRecord
from datasets.caption_sources import Assigned, Parts, Source, choose_style, rows_of, unread_lines
from datasets.data_folders import ImageFinder, find_folder, find_image_folders, problems_with_idle_keys, problems_with_words
from datasets.image_folders import SPLIT_WORDS
from datasets.row_faults import Fault, Faults
from datasets.text_decode import DEFAULT_ENCODING, FileForm, parse_columns

logger = logging.getLogger(__name__)

NODE = "DATASET.CAPTION"
CLASSNAME = "caption"  # there is one class: Dassl wants a label
PARTS = ("train", "val", "test")
CHOICES = {"MISSING": ("error", "skip")}


class CaptionDataset(NamedClassesDataset):
    """Captions with or without pictures: an `Item` per picture, or per caption that has none; see `datasets.caption_records`.

    A text-only item's `impath` is the file that lists it. `train_x` is empty where there is nothing to train on (NoCaps),
    `test` where there are no pictures.

    Attributes:
        usual_folders: Folders below DATASET.ROOT that are looked for when DATASET.CAPTION.DIR is empty; "" = ROOT itself.
        usual_files: Names of published files, the best first; `{}` stands for train, val and test.
        image_folders: Folders that picture paths are relative to when DATASET.CAPTION.IMAGES is empty.
        fallback_encoding: Codec of files that are no UTF-8, where the published ones are known to be of two kinds.
        published_sizes: Part -> published numbers of pictures and captions; None = nobody says.
        evaluation_only: Whether there are published captions to test on, and none to train on.
        folder: Where the files lie.
        split_kind: `given`; `val as test` (its figures are those of the validation part); `tests only`; `text only`.
        caption_report: Lines about what was found, for the log of a run.
    """

    usual_folders: Sequence[str] = ("",)
    usual_files: Sequence[str] = ()
    image_folders: Sequence[str] = ("images", "Images", "")
    fallback_encoding = ""
    published_sizes: Mapping[str, tuple[int | None, int | None]] = {}
    evaluation_only = False
    split_kind = "given"

    def __init__(self, cfg: CfgNode) -> None:
        self._names = (CLASSNAME,)
        self._check_keys(cfg)
        settings, name = cfg.DATASET.CAPTION, type(self).__name__
        marks = [file.format(part) for file in self.usual_files for part in PARTS]
        self.folder = find_folder(cfg, "CAPTION", self.usual_folders, name, marks=marks)
        self.caption_report: list[str] = []
        faults = Faults()
        try:
            columns = parse_columns(settings.COLUMNS, tuple(ALIASES), NODE)
            fallback = "" if settings.ENCODING else self.fallback_encoding
            self.form = FileForm(NODE, settings.ENCODING or DEFAULT_ENCODING, fallback, columns)
            parts = self.read_parts(cfg, faults)
            finder = ImageFinder(self.find_images(settings, parts))
            checked = check_parts(parts, finder, faults, skip=settings.MISSING == "skip")
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"data set {name} in {self.folder}: {error}") from error
        self.caption_report += [*checked.report, *self.deviations(checked.parts)]
        items = {part: [self._to_item(row, part, n) for n, row in enumerate(rows, 1)] for part, rows in checked.parts.items()}
        self._build(items)

    # Dassl counts the classes of `train_x`, which may be empty.

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum] | None) -> int:
        """Number of classes: one."""
        return 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum] | None) -> tuple[dict[int, str], list[str]]:
        """Label -> class name, and the class names."""
        return {0: CLASSNAME}, [CLASSNAME]

    # What a data set may replace.

    def find_file(self, part: str) -> Path | None:
        """Return the usual file of a part alone, if it is there."""
        found = next((name for name in self.usual_files if self._is_there(name)), "")
        file = self.folder / found.format(part)
        return file if "{}" in found and file.is_file() else None

    def find_whole(self, settings: CfgNode) -> Path | None:
        """Return the usual file of all parts, if it is there."""
        found = next((name for name in self.usual_files if self._is_there(name)), "{}")
        return None if "{}" in found else self.folder / found

    def find_rest(self, settings: CfgNode) -> dict[str, Source]:
        """Return sources where there is no file at all."""
        return {}

    def _is_there(self, name: str) -> bool:
        return any((self.folder / name.format(part)).is_file() for part in PARTS)

    def read_source(self, source: Source) -> list[CaptionReading]:
        """Return the rows of a source.

        Raises:
            ValueError: If it cannot be read, or has files that this data set has no use for.
        """
        if len(source.files) > 1:
            raise ValueError(f"received {', '.join(path.name for path in source.files)}; expected one file")
        return read_captions_of(source.files[0], self.form)

    def part_of(self, record: CaptionRecord) -> str | None:
        """Return the part that a row says it belongs to; "" if it does not say, None if nobody knows the word."""
        word = record.split.lower()
        return {"": "", "restval": "train", **SPLIT_WORDS}.get(word)

    def complete(self, record: CaptionRecord) -> CaptionRecord:
        """Return the record with all places where its picture may lie."""
        return record

    def split_name(self, record: CaptionRecord, part: str) -> str:
        """Return the extra `split_name` of a row."""
        return part

    def find_images(self, settings: CfgNode, parts: Mapping[str, Sequence[CaptionRecord]]) -> list[Path]:
        """Return the folders that picture paths are relative to: beside the data files, then in the data set's folder.

        Raises:
            FileNotFoundError: If DATASET.CAPTION.IMAGES names none.
        """
        files = dict.fromkeys(record.file for rows in parts.values() for record in rows if record.file)
        places = dict.fromkeys(file.parent for file in files)
        named = settings.IMAGES
        if named:
            return find_image_folders(self.folder, named, (), f"{NODE}.IMAGES")
        found = (path for place in [*places, self.folder] for path in find_image_folders(place, "", self.image_folders, ""))
        return list(dict.fromkeys(found))

    def deviations(self, parts: Mapping[str, Sequence[Shown]]) -> list[str]:
        """Return a line per part that has other sizes than the published ones."""
        lines = []
        for part, published in self.published_sizes.items():
            rows = parts.get(part, ())
            found = (len(rows), sum(len(record.captions) for _, record in rows))
            differs = any(size is not None and size != count for size, count in zip(published, found, strict=True))
            if part in parts and differs:
                listed = " and ".join("any number" if size is None else f"{size:,}" for size in published)
                lines.append(f"{part} has {found[0]:,} pictures and {found[1]:,} captions; published are {listed}")
        return lines

    # The way from files to items.

    def find_sources(self, settings: CfgNode) -> dict[str, Source]:
        """Return part -> source: what its key names, else its usual file, else the file of all parts, or that named for train.

        Raises:
            ValueError: If there is none, or a file is named for a part that this set cannot have.
        """
        if self.evaluation_only and (settings.TRAIN or settings.VAL):
            raise ValueError(f"{NODE}.TRAIN and VAL: expected nothing, its captions are for evaluation alone ({NODE}.TEST)")
        sources: dict[str, Source] = {}
        for part in PARTS:
            if named := settings[part.upper()]:
                sources[part] = Source(tuple(self.folder / name.strip() for name in named.split(",")))
            elif file := self.find_file(part):
                sources[part] = Source((file,))
        whole, named_files = self.find_whole(settings), sources["train"].files if settings.TRAIN else ()
        files = (whole,) if whole and whole not in named_files else named_files
        if files:
            sources |= {part: Source(files, part == "train", sure=False) for part in PARTS if part not in sources}
        sources = sources or self.find_rest(settings)
        if not sources:
            raise ValueError(f"no file {self.wanted_files}; {NODE}.TRAIN, VAL and TEST name files")
        return sources

    @property
    def wanted_files(self) -> str:
        """What is looked for, in words."""
        return ", ".join(name.format("{train,val,test}") for name in self.usual_files)

    def read_parts(self, cfg: CfgNode, faults: Faults) -> Parts:
        """Return the rows of every part that has any.

        Args:
            cfg: Read for DATASET.CAPTION.
            faults: Receives the rows that cannot be used.
        Raises:
            ValueError: For everything that is wrong with the files (names them).
        """
        settings, problems = cfg.DATASET.CAPTION, []
        sources = self.find_sources(settings)
        rows: dict[tuple[Path, ...], list[Assigned]] = {}
        for part, source in sources.items():
            try:
                if source.files not in rows:
                    rows[source.files] = self._assign(self.read_source(source), faults)
            except (ValueError, FileNotFoundError) as error:
                problems.append(f"{NODE}.{part.upper()}: {error}")
                rows[source.files] = []
        if problems:
            raise ValueError("\n  ".join(problems))
        parts = {part: rows_of(part, source, rows[source.files]) for part, source in sources.items()}
        empty = [f"{sources[part].files[0]} holds no row of {part}" for part in parts if sources[part].sure and not parts[part]]
        if empty and not faults:
            raise ValueError("; ".join(empty))
        self.caption_report += unread_lines(sources, rows)
        return choose_style({part: found for part, found in parts.items() if found}, settings.STYLE)

    def _assign(self, readings: Iterable[CaptionReading], faults: Faults) -> list[Assigned]:
        records: list[Assigned] = []
        for row in readings:
            part = "" if isinstance(row, Fault) else self.part_of(row)
            if isinstance(row, Fault):
                faults.add(row.reason, row.origin)
            elif part is None:
                faults.add("unknown split", f"{row.origin}: {row.split}")
            else:
                records.append((part, self.complete(row)))
        return records

    def _to_item(self, row: Shown, part: str, number: int) -> Item:
        path, record = row
        extras = record.extras(image_id=f"{part}-{number}", split_name=self.split_name(record, part))
        return Item(str(path or record.file), 0, classname=CLASSNAME, extras=extras)

    def _build(self, items: dict[str, list[Item]]) -> None:
        train, val, test = (items.get(part, []) for part in PARTS)
        if not test and val:
            test, self.split_kind = val, "val as test"
            logger.warning("There is no test part: every test figure of this run is a VALIDATION figure (%s.TEST)", NODE)
        elif not train:
            self.split_kind = "tests only"
        elif not test:
            self.split_kind = "text only"
        counts = ", ".join(f"{len(found)} {part}" for part, found in items.items())
        logger.info("%s: %s, split %s: %s items", type(self).__name__, self.folder, self.split_kind, counts)
        super().__init__(train_x=train, val=val or None, test=test)

    @classmethod
    def _check_keys(cls, cfg: CfgNode) -> None:
        """Refuse values that are impossible or that captions have no use for."""
        problems = problems_with_words(NODE, cfg.DATASET.CAPTION, CHOICES)
        problems += problems_with_idle_keys(cfg.DATASET, "data sets of captions")
        if problems:
            raise ValueError(f"data set {cls.__name__}: " + "; ".join(problems))

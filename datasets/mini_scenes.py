"""MiniScenes: rendered scenes with captions, boxes, questions and styles, made below DATASET.ROOT on first use.

Nothing is downloaded: backgrounds, shapes, letters and clocks are drawn, and the digits are the handwriting of
`HandwrittenDigits`, of its train, val and test part for scenes of train, val and test.
"""
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image
from yacs.config import CfgNode

from datasets.base import Item, NamedClassesDataset, choose_few_shots, ensure_files, resolve_builtin_root, subsample_classes
from datasets.handwritten_digits import RECIPE as DIGITS
from datasets.handwritten_digits import render_digits
from datasets.mini_scenes_generator import OBJECT_NAMES, QUESTION_TYPES, STYLES
from datasets.mini_scenes_generator.files import GROUPS, Handwriting, WorldSize, render_world

Record = Mapping[str, Any]  # of one scene, see mini_scenes_generator.records

SIZES: dict[str, WorldSize] = {
    "full": WorldSize(train=6000, val=600, test=1200, groups=300),
    "small": WorldSize(train=600, val=100, test=200, groups=50),  # the first scenes of the full one
}
DOMAINS = "domains"
TESTS = ("test", GROUPS, DOMAINS)
HELD_OUT = frozenset({"ring", "star", "digit seven", "letter k"})  # objects that no caption of train names, with DOMAINS

_CLASSES = tuple(sorted(OBJECT_NAMES))
_TYPES = tuple(sorted(QUESTION_TYPES))
_STYLES = tuple(sorted(STYLES))


@DATASET_REGISTRY.register()
class MiniScenes(NamedClassesDataset):
    """The miniature world, in the view that a trainer reads.

    DATASET.MINI_VIEW says what an item is: a scene with the name of its largest object (classes) or with the style of its
    background (styles) as label, a scene with its captions (captions), or a question about a scene (questions).
    DATASET.MINI_TEST groups puts the groups of scenes with one background in the place of the test split; domains keeps the
    scenes with a few held-out objects for test, where their captions count as another domain, as NoCaps does for COCO.
    """

    dataset_dir = "mini_scenes"
    split_kind = "own"

    def __init__(self, cfg: CfgNode) -> None:
        check_keys(cfg.DATASET)
        size, (self._names, list_items) = cfg.DATASET.MINI_SIZE, VIEWS[cfg.DATASET.MINI_VIEW]
        folder = resolve_builtin_root(cfg.DATASET.ROOT, type(self).__name__) / self.dataset_dir / size
        ensure_files(folder, recipe_of(SIZES[size]), lambda: render_world(SIZES[size], read_handwriting()))
        tested = cfg.DATASET.MINI_TEST
        records = [read_records(folder, part) for part in ("train", "val", "test" if tested == DOMAINS else tested)]
        if tested == DOMAINS:
            records = with_domains(*records)
        train, val, test = ([item for record in part for item in list_items(folder, record)] for part in records)
        train, val = choose_few_shots(train, val, shots=cfg.DATASET.NUM_SHOTS, seed=cfg.SEED)
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            train, val, test = subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, val, test)
            self._names = tuple(name for _, name in sorted({item.label: item.classname for item in train}.items()))
        super().__init__(train_x=train, val=val, test=test)


def check_keys(settings: CfgNode) -> None:
    """Raise ValueError naming every key of MiniScenes with an unknown value, and the allowed ones."""
    allowed = {"MINI_SIZE": SIZES, "MINI_VIEW": VIEWS, "MINI_TEST": TESTS, "SUBSAMPLE_CLASSES": ("all", "base", "new")}
    problems = [
        f"DATASET.{key} is {settings[key]!r}; expected one of {', '.join(values)}"
        for key, values in allowed.items()
        if settings[key] not in values
    ]
    if settings.MINI_TEST == DOMAINS and settings.MINI_VIEW != "captions":
        problems.append(f"DATASET.MINI_TEST is {DOMAINS!r}, but DATASET.MINI_VIEW is {settings.MINI_VIEW!r}; expected captions")
    if problems:
        raise ValueError(f"MiniScenes: {'; '.join(problems)}")


def recipe_of(size: WorldSize) -> dict[str, int | str]:
    """Everything that decides the files: the generator's code, the sizes, and how the digits are made."""
    return {**size.recipe, "digits": json.dumps(DIGITS, sort_keys=True)}


def read_handwriting() -> Handwriting:
    """Pictures of `HandwrittenDigits` by split and numeral, (h, w) uint8, white on black, in file order."""
    pictures: defaultdict[str, defaultdict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for name, content in render_digits():
        split, numeral, _ = name.split("/")
        pictures[split][numeral].append(np.asarray(Image.open(io.BytesIO(content))))
    return pictures


def read_records(folder: Path, part: str) -> list[Record]:
    """All that is known of the scenes of a part: train, val, test or groups."""
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()]


def with_domains(train: list[Record], val: list[Record], test: list[Record]) -> list[list[Record]]:
    """Return train and val without the scenes that have a held-out object, and test with its domains as `split`."""
    kept = [[record for record in part if not _is_held_out(record)] for part in (train, val)]
    tested = [{**record, "split": "out_domain" if _is_held_out(record) else "in_domain"} for record in test]
    return [*kept, tested]


def _is_held_out(record: Record) -> bool:
    return any(thing["name"] in HELD_OUT for thing in record["objects"])


def _by_largest_object(folder: Path, record: Record) -> Iterator[Item]:
    name = max(record["objects"], key=lambda thing: sum(thing["mask"]["counts"][1::2]))["name"]
    yield Item(str(folder / record["file"]), _CLASSES.index(name), classname=name, extras=_place(record))


def _by_style(folder: Path, record: Record) -> Iterator[Item]:
    style = record["style"]
    yield Item(str(folder / record["file"]), _STYLES.index(style), classname=style, extras=_place(record))


def _with_captions(folder: Path, record: Record) -> Iterator[Item]:
    captions = record["captions"]
    extras = {
        "captions": json.dumps([caption["text"] for caption in captions]),
        "entities": json.dumps([caption["entities"] for caption in captions]),
        "image_id": record["scene_id"],
        "split_name": record["split"],
        "style": record["style"],
    }
    yield Item(str(folder / record["file"]), 0, classname="caption", extras=extras)


def _by_question(folder: Path, record: Record) -> Iterator[Item]:
    boxes = json.dumps([thing["box"] for thing in record["objects"]])
    for entry in record["questions"]:
        question_type = entry["question_type"]
        extras = {
            "question": entry["question"],
            "answers": json.dumps([entry["answer"]]),
            "boxes": boxes,
            "question_id": entry["question_id"],
            "question_type": question_type,
            "style": record["style"],
            "names_style": int(entry["names_style"]),
            **_place(record),
        }
        yield Item(str(folder / record["file"]), _TYPES.index(question_type), classname=question_type, extras=extras)


def _place(record: Record) -> dict[str, str]:
    """Where a scene stands in its world: what a cache of backgrounds is measured by."""
    return {key: record[key] for key in ("background_id", "group_id", "role")}


# Names of the labels, and the items of a scene.
VIEWS: dict[str, tuple[tuple[str, ...], Callable[[Path, Record], Iterator[Item]]]] = {
    "classes": (_CLASSES, _by_largest_object),
    "styles": (_STYLES, _by_style),
    "captions": (("caption",), _with_captions),
    "questions": (_TYPES, _by_question),
}

"""What the loaders yield: a picture in the views of both encoders, or its row in the feature cache, and its question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dassl.data.datasets import Datum
from PIL import Image
from torch import Tensor

from clip_ext.style_names import StyleNames
from trainers.base import ExtrasWrapper
from trainers.gated_blip2.style.classes import label_styles
from trainers.gated_blip2.style.source import find_source_problems
from trainers.question_items import extras_of, references_of

UNKNOWN_STYLE = -1
NEEDED = ("question", "answers")  # extras of every VQA data set
LISTED = 10

View = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, eq=False)
class PictureViews:
    """How both encoders see a picture; stands where Dassl expects a transform.

    Attributes:
        image: RGB image -> input of BLIP-2's vision tower, (3, S, S), fp32.
        style: RGB image -> input of the style encoder, (3, s, s), fp32; None without one.
        names: Styles that the encoder tells apart; None: it has no names for them.
        samples_answers: Learn from a random reference of several, not from the first.
    """

    image: View
    style: View | None = None
    names: StyleNames | None = None
    samples_answers: bool = False

    def see(self, image: Image.Image) -> dict[str, Tensor]:
        """Return `img`, and `img2` with a style encoder."""
        return {"img": self.image(image)} | ({} if self.style is None else {"img2": self.style(image)})

    def style_of(self, item: Datum) -> int:
        """Return the number of an item's style; -1 where it is unknown, to the data set or to the encoder."""
        return style_index(self.names, extras_of(item).get("style", ""))


class VQAWrapper(ExtrasWrapper):
    """Dassl's data set wrapper for questions about pictures; `transform` is a `PictureViews`.

    A row holds `img` (3, S, S) and `img2` (3, s, s), fp32, or in their place `row` and `style_row`, numbers in the feature
    cache; and `label`, `domain`, `impath`, `index`, `question`, `answer` (what is learned; "" if there is none), `style`
    (its number, -1 = unknown). References are read through `index`.

    Attributes:
        rows: Row in the cache of each item; None: pictures are opened.
        style_from: Number of the item whose style each item gets; None: its own.
    """

    rows: Sequence[int] | None = None
    style_from: Sequence[int] | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, views = self.data_source[index], self.transform
        donor = index if self.style_from is None else self.style_from[index]
        row = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        row |= {"question": extras_of(item)["question"], "answer": self._answer(item)}
        row |= {"style": views.style_of(self.data_source[donor])}
        if self.rows is not None:
            return row | {"row": self.rows[index], "style_row": self.rows[donor]}
        seen = views.see(self.read(item.impath))
        if donor != index and "img2" in seen:
            seen["img2"] = views.style(self.read(self.data_source[donor].impath))
        return row | seen

    def _answer(self, item: Datum) -> str:
        references = references_of(item)
        if not references:
            return ""
        draws = self.transform.samples_answers and self.is_train and self.rng is not None
        return references[int(self.rng.integers(len(references)))] if draws else references[0]


def style_index(names: StyleNames | None, style: str) -> int:
    """Return the number of a style among an encoder's; -1 for one that it does not know."""
    try:
        return UNKNOWN_STYLE if names is None else names.index(style)
    except ValueError:
        return UNKNOWN_STYLE


def permute_styles(items: Sequence[Datum], seed: int) -> list[int]:
    """Return whose style each item gets: a permutation that gives an item another style wherever that is possible.

    Items without a known style count as having one of their own, that of their picture.

    Args:
        items: Of a split.
        seed: Decides the permutation.
    """
    styles = [extras_of(item).get("style") or item.impath for item in items]
    _, keys = np.unique(np.array(styles), return_inverse=True)
    rng = np.random.default_rng([max(seed, 0), len(items)])
    given = rng.permutation(len(items))
    for place in range(len(items)):
        if keys[given[place]] != keys[place]:
            continue
        others = np.flatnonzero((keys[given] != keys[place]) & (keys != keys[given[place]]))
        if len(others):
            other = rng.choice(others)
            given[place], given[other] = given[other], given[place]
    return given.tolist()


def spread(items: Sequence[Datum], limit: int) -> list[Datum]:
    """Return at most `limit` items, evenly spaced over all of them and always the same; -1 = all."""
    count = len(items)
    return list(items) if limit < 0 or limit >= count else [items[number * count // limit] for number in range(limit)]


def problems_with_texts(splits: dict[str, Sequence[Datum]]) -> list[str]:
    """Return messages for empty questions, and for training questions without an answer, with counts and the first ten.

    Args:
        splits: train, val, test -> items with `question` and `answers`.
    """
    silent = [f"{item.impath} ({name})" for name, items in splits.items() for item in items if not _question_of(item)]
    open_ones = [f"{item.impath}: {_question_of(item)}" for item in splits.get("train", ()) if not references_of(item)]
    return _list_faults({"item(s) have an empty question": silent, "training question(s) have no answer": open_ones})


def find_long_questions(items: Sequence[Datum], encode: Callable[[str, str], Any]) -> tuple[list[str], int]:
    """Return messages for training items that do not fit into the language model, and how many questions are cut.

    Args:
        items: Of the training split.
        encode: Question, answer -> token ids with `cut`; raises ValueError for what cannot be encoded.
    """
    broken, n_cut = [], 0
    for item in items:
        question = _question_of(item)
        try:
            n_cut += any([encode(question, answer).cut for answer in references_of(item)])
        except ValueError as error:
            broken.append(f"{item.impath}: {error}")
    return _list_faults({"training question(s) cannot be encoded": broken}), n_cut


def problems_with_styles(items: Sequence[Datum], names: StyleNames | None) -> list[str]:
    """Return messages for styles of the data that the encoder does not know, with the nearest that it does; and for data that
    name none, or an encoder that knows none. For runs that learn from the data's styles.

    Args:
        items: Of all splits.
        names: Styles of the encoder.
    """
    labels, unknown = label_styles([extras_of(item).get("style", "") for item in items], names)
    problems = _list_faults({"style(s) of the data set are unknown to the style encoder": unknown})
    if names is None:
        return problems + find_source_problems("label", n_styles=None)
    return problems or find_source_problems("label", n_known=sum(label != UNKNOWN_STYLE for label in labels))


def _list_faults(found: dict[str, list[str]]) -> list[str]:
    return [
        f"{len(cases):,} {reason}\n  " + "\n  ".join(cases[:LISTED]) + ("\n  ..." if len(cases) > LISTED else "")
        for reason, cases in found.items()
        if cases
    ]


def _question_of(item: Datum) -> str:
    return str(extras_of(item)["question"]).strip()

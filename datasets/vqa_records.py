"""One question about one image, and what every data set of questions tells about it.

The extras of an item are texts, the same in all these sets: `question`, `answers` (JSON list of references; `[]` = none known),
`boxes` (JSON list of [x1, y1, x2, y2] in pixels of the original image; `[]` = no object in it, "" = nobody said where objects
are), `question_id`, `question_type`, `style` ("" = unknown). Where a set has conversations of several turns, `turns` is a JSON
list of [question, answer] pairs, "" for items of one turn. `question` and `answers` are then those of the first turn, which
evaluation asks; training learns all turns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets.csv_rows import as_text
from datasets.row_faults import Fault

DEFAULT_TYPE = "vqa"  # the question type of sets, and of rows, without types

# Our names -> the names that published files use, the first one wins.
ALIASES = {
    "image": ("image", "image_path", "impath"),
    "question": ("question", "text"),
    "answer": ("answer", "answers", "label"),
    "question_type": ("question_type", "category"),
    "style": ("style",),
    "question_id": ("question_id", "id"),
    "boxes": ("boxes",),
}


@dataclass(frozen=True)
class Record:
    """A question as a file lists it; the image need not exist yet.

    Attributes:
        images: Paths relative to an image folder; the first that exists is meant.
        question: Without image tag; may be blank, which the checks report.
        origin: Where it is listed, for messages.
        answers: References; empty if there is none.
        question_type: "" if nothing says.
        turns: All (question, answer) pairs of a conversation of several, else empty.
        boxes: The extra `boxes`.
        further: Extras of one data set only.
    """

    images: tuple[str, ...]
    question: str
    origin: str
    answers: tuple[str, ...] = ()
    question_id: str = ""
    question_type: str = ""
    style: str = ""
    boxes: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    further: Mapping[str, str] = field(default_factory=dict)

    def extras(self, *, with_turns: bool) -> dict[str, str]:
        """Return the item's extras; `turns` is there for all items of a set or for none, since they are batched."""
        found = {
            "question": self.question,
            "answers": json.dumps(self.answers, ensure_ascii=False),
            "boxes": self.boxes,
            "question_id": self.question_id,
            "question_type": self.question_type or DEFAULT_TYPE,
            "style": self.style,
        }
        if with_turns:
            found["turns"] = json.dumps(self.turns, ensure_ascii=False) if self.turns else ""
        return found | dict(self.further)


Reading = Record | Fault


def read_cells(cells: Mapping[str, Any], names: Mapping[str, str], origin: str) -> Reading:
    """Turn a row of a table, or a flat JSON object, into a record.

    Args:
        cells: Name -> text, number or list.
        names: Ours -> theirs, for what the file has.
        origin: For messages.
    """
    found = {ours: cells.get(theirs) for ours, theirs in names.items()}
    texts = {ours: as_text(value) for ours, value in found.items() if ours not in ("answer", "boxes")}
    if not texts["image"]:
        return Fault("no image", origin)
    try:
        answers, boxes = read_answers(found.get("answer")), read_boxes(found.get("boxes"))
    except ValueError as error:
        return Fault(str(error), origin)
    return Record((texts.pop("image"),), texts.pop("question"), origin, answers=answers, boxes=boxes, **texts)


def read_answers(value: Any) -> tuple[str, ...]:
    """Return the references of a cell: one text or number, a list of them (or its JSON text), or VQAv2's list of objects.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value)
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("answer") if isinstance(part, dict) else part for part in parts]
    if any(isinstance(text, (list, dict, bool)) for text in texts):
        raise ValueError("answers that are neither text nor a list of texts")
    return tuple(text for text in map(as_text, texts) if text)


def read_boxes(value: Any) -> str:
    """Return the extra `boxes` of a cell: a list of [x1, y1, x2, y2], or its JSON text; blank = unknown.

    Raises:
        ValueError: If it is something else, or a box is empty or not finite.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    boxes = _parsed(value) if isinstance(value, str) else value
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise ValueError("boxes that are no list of [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    return json.dumps([[float(edge) for edge in box] for box in boxes])


def _is_box(box: Any) -> bool:
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    if not all(isinstance(edge, (int, float)) and not isinstance(edge, bool) and math.isfinite(edge) for edge in box):
        return False
    return box[0] < box[2] and box[1] < box[3]


def _parsed(text: str) -> Any:
    """Return the JSON value of a text, or the text itself if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text

"""VQAv2's pair of files: questions, and annotations with ten answers each (Goyal et al., CVPR 2017)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.csv_rows import as_text
from datasets.row_faults import Fault
from datasets.vqa_records import Reading, Record, read_answers


def find_annotations(questions: Path) -> Path | None:
    """Return the annotations that lie beside the questions under the published names; None if there are none."""
    name = questions.name.replace("questions", "annotations")
    for word in ("", "OpenEnded_", "MultipleChoice_"):
        file = questions.with_name(name.replace(word, ""))
        if file != questions and file.is_file():
            return file
    return None


def read_pair(file: Path, content: Mapping[str, Any], annotations: Any) -> list[Reading]:
    """Join questions and annotations by question_id.

    Args:
        file: Of the questions, for messages.
        content: Its object; `data_subtype` (train2014) is part of COCO's file names.
        annotations: The other file's object, or None for unlabelled questions.
    Returns:
        A reading per question. Its question type is the answer type, as official reports group them.
    Raises:
        ValueError: If the annotations have another form.
    """
    answered: dict[Any, Mapping[str, Any]] = {}
    if annotations is not None:
        rows = annotations.get("annotations") if isinstance(annotations, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "question_id" in row for row in rows):
            raise ValueError(f"annotations of {file}: expected an object with a list `annotations` of objects with question_id")
        answered = {row["question_id"]: row for row in rows}
    subset = as_text(content.get("data_subtype"))
    return [
        _read_question(row, answered, subset, f"{file.name}, entry {number}")
        for number, row in enumerate(content["questions"], 1)
    ]


def _read_question(row: Any, answered: Mapping[Any, Mapping[str, Any]], subset: str, origin: str) -> Reading:
    if not isinstance(row, dict):
        return Fault("no JSON object", origin)
    note = answered.get(row.get("question_id"), {})
    if row.get("image_id") is None and not row.get("image"):
        return Fault("no image", origin)
    try:
        answers = read_answers(note.get("answers", row.get("answers")))
    except ValueError as error:
        return Fault(str(error), origin)
    return Record(
        (as_text(row["image"]),) if row.get("image") else _coco_names(row["image_id"], subset),
        as_text(row.get("question")),
        origin,
        answers=answers,
        question_id=as_text(row.get("question_id")),
        question_type=as_text(note.get("answer_type", note.get("question_type"))),
    )


def _coco_names(image_id: Any, subset: str) -> tuple[str, ...]:
    """Return the published file names of an image, in the image folder and in the subset's folder inside it."""
    if str(image_id).isdecimal():
        names = [f"COCO_{subset}_{int(image_id):012d}.jpg", f"{int(image_id):012d}.jpg"]
    else:
        names = [str(image_id), f"{image_id}.jpg"]
    return tuple(f"{folder}{name}" for folder in dict.fromkeys(["", f"{subset}/" if subset else ""]) for name in names)

"""OCRVQA: questions about book covers.

A. Mishra et al., "OCR-VQA: Visual Question Answering by Reading Text in Images", ICDAR 2019. 207,572 covers
with their own split. The user fetches the pictures from the addresses in `dataset.json`; those that are gone stop the run,
unless DATASET.VQA.MISSING is `skip`.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.csv_rows import as_text
from datasets.row_faults import Fault
from datasets.vqa_dataset import PARTS, VQADataset
from datasets.vqa_records import Reading, Record

FILE_NAME = "dataset.json"
PART_OF = {"1": "train", "2": "val", "3": "test"}


@DATASET_REGISTRY.register()
class OCRVQA(VQADataset):
    """OCR-VQA as published: `dataset.json`, and `images/<key>` with the ending of its address, or .jpg."""

    usual_folders = ("ocr_vqa", "OCR-VQA", "OCR-VQA-200K", "OCR_VQA", "ocrvqa", "")

    def read_parts(self, settings: CfgNode) -> dict[str, Sequence[Reading]]:
        """Return the three parts of the one file, which DATASET.VQA.TRAIN may name.

        Raises:
            ValueError: If the file is no such object, or other files are named.
        """
        named = [f"DATASET.VQA.{key}" for key in ("VAL", "TEST", "COLUMNS") if settings[key]]
        if named:
            raise ValueError(f"{', '.join(named)}: expected nothing, one file holds all parts (DATASET.VQA.TRAIN)")
        file = self.folder / (settings.TRAIN or FILE_NAME)
        content = self.form.read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected an object of covers")
        parts: dict[str, list[Reading]] = {part: [] for part in PARTS}
        for key, cover in content.items():
            part = PART_OF.get(str(cover.get("split")), "") if isinstance(cover, dict) else ""
            # A cover of no part is a fault, which is reported with those of the first part.
            parts[part or "train"] += read_cover(key, cover) if part else [Fault("split that is not 1, 2 or 3", f"cover {key}")]
        return {part: readings for part, readings in parts.items() if readings}


def read_cover(key: str, cover: Mapping[str, Any]) -> list[Reading]:
    """Return a reading per question of one cover."""
    origin = f"cover {key}"
    questions, answers = cover.get("questions"), cover.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        return [Fault("other number of questions than of answers", origin)]
    ending = PurePosixPath(as_text(cover.get("imageURL")).split("?")[0]).suffix
    images = tuple(dict.fromkeys((f"{key}{ending or '.jpg'}", f"{key}.jpg")))
    return [
        Record(
            images,
            as_text(question),
            f"{origin}, question {number}",
            answers=(as_text(answer),) if as_text(answer) else (),
            question_id=f"{key}-{number}",
        )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), 1)
    ]

"""TextVQA 0.5.1: questions about text in images (Singh et al., "Towards VQA Models That Can Read", CVPR 2019).

Published figures are those of the validation part, whose answers are public; the test part has none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.csv_rows import as_text
from datasets.row_faults import Fault
from datasets.text_decode import FileForm
from datasets.vqa_dataset import PARTS, VQADataset
from datasets.vqa_records import Reading, Record, read_answers

QUESTIONS = "TextVQA_0.5.1_{}.json"
OCR_FILES = ("TextVQA_Rosetta_OCR_v0.2_{}.json", "TextVQA_Rosetta_OCR_v0.1_{}.json")
IMAGE_FOLDERS = ("train_images", "train_val_images/train_images", "test_images", "images", "")


@DATASET_REGISTRY.register()
class TextVQA(VQADataset):
    """TextVQA as published: `TextVQA_0.5.1_{train,val}.json` and `train_images/`.

    Every item has the extra `ocr_tokens` (JSON list of texts), read from `TextVQA_Rosetta_OCR_v0.2_*.json` beside the
    questions; `[]` for an image without tokens, and without such a file. Tests are on val; DATASET.VQA.TEST names the
    unlabelled test questions, for predictions.
    """

    usual_folders = ("textvqa", "TextVQA", "text_vqa", "")

    def find_files(self, part: str, named: str) -> list[Path]:
        """Return the questions of a part; test only if it is named."""
        file = self.folder / (named or QUESTIONS.format(part))
        return [file] if named or (part != "test" and file.is_file()) else []

    def find_images(self, settings: CfgNode) -> list[Path]:
        """Return the published image folders that are there, or the one that DATASET.VQA.IMAGES names."""
        if settings.IMAGES:
            return super().find_images(settings)
        return [folder for name in IMAGE_FOLDERS if (folder := self.folder / name).is_dir()]

    def read_parts(self, settings: CfgNode) -> dict[str, Sequence[Reading]]:
        """Return the questions of the parts that there are files for.

        Raises:
            ValueError: If there is none, or one has another form.
        """
        if settings.COLUMNS:
            raise ValueError("DATASET.VQA.COLUMNS: expected nothing, the published names are read")
        files = {part: found[0] for part in PARTS if (found := self.find_files(part, settings[part.upper()]))}
        if not files:
            raise ValueError(f"no {QUESTIONS.format('train')} or {QUESTIONS.format('val')}; DATASET.VQA.VAL names another file")
        tokens = {part: self._read_tokens(part) for part in files}
        return {part: read_part(file, tokens[part], self.form) for part, file in files.items()}

    def _read_tokens(self, part: str) -> dict[str, list[str]]:
        """Return image id -> tokens of a part; empty without a file."""
        file = next((path for name in OCR_FILES if (path := self.folder / name.format(part)).is_file()), None)
        if file is None:
            return {}
        return {as_text(row.get("image_id")): list(map(str, row.get("ocr_tokens") or [])) for row in rows_of(file, self.form)}


def rows_of(file: Path, form: FileForm) -> list[Mapping[str, Any]]:
    """Return the rows of a published file.

    Raises:
        ValueError: If it is no object with a list `data` of objects.
    """
    content = form.read_json(file)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: expected an object with a list `data` of objects")
    return rows


def read_part(file: Path, tokens: Mapping[str, list[str]], form: FileForm) -> list[Reading]:
    """Return a reading per question.

    Args:
        file: Of the questions.
        tokens: Image id -> what OCR read.
        form: How it is written.
    """
    return [_read_row(row, tokens, f"{file.name}, entry {n}") for n, row in enumerate(rows_of(file, form), 1)]


def _read_row(row: Mapping[str, Any], tokens: Mapping[str, list[str]], origin: str) -> Reading:
    image = as_text(row.get("image_id"))
    if not image:
        return Fault("no image", origin)
    try:
        answers = read_answers(row.get("answers"))
    except ValueError as error:
        return Fault(str(error), origin)
    return Record(
        (f"{image}.jpg", f"{image}.png"),
        as_text(row.get("question")),
        origin,
        answers=answers,
        question_id=as_text(row.get("question_id")),
        further={"ocr_tokens": json.dumps(tokens.get(image, []), ensure_ascii=False)},
    )

"""ArtQuest: questions about paintings whose answers are facts of art history.

T. Bleidt, S. Eslami, G. de Melo, "ArtQuest: Countering Hidden Language Biases in ArtVQA", WACV 2024. Tables and pictures
(those of SemArt) are fetched by the user. Questions are asked closed-book: what a table says in other columns, a description of
the painting above all, is never read, since it often names the artist.
"""

import logging
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from clip_ext.style_names import StyleNames, wikiart_styles
from datasets.vqa_dataset import VQADataset
from datasets.vqa_records import DEFAULT_TYPE, Record

logger = logging.getLogger(__name__)

QUESTION_TYPES = ("artist", "school", "timeframe", "type", "technique", "title")
IMAGE_FOLDERS = ("images", "Images", "../SemArt/Images", "")  # SemArt's pictures serve several sets


@DATASET_REGISTRY.register()
class ArtQuest(VQADataset):
    """ArtQuest as published, or own questions in its form: `{train,val,test}.csv` or `artquest_{train,val,test}.csv`.

    Questions, answers and question types are lower-cased. A column `style`, which the published tables do not have, holds
    WikiArt's styles in any of their spellings.
    """

    usual_folders = ("artquest", "ArtQuest", "")
    prefixes = ("", "artquest_")
    image_folders = IMAGE_FOLDERS
    style_names = StyleNames(wikiart_styles().names)

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        others = [name for name in self.classnames if name not in (*QUESTION_TYPES, DEFAULT_TYPE)]
        if others:
            logger.warning("ArtQuest: question types beside %s: %s", ", ".join(QUESTION_TYPES), ", ".join(others))

    def adapt(self, record: Record) -> Record:
        """Return the row in lower case; a style keeps its spelling."""
        answers = tuple(answer.lower() for answer in record.answers)
        question_type = record.question_type.lower()
        return replace(record, question=record.question.lower(), answers=answers, question_type=question_type)

"""From the `TEXT` keys to a text bank: the translation that all CLIP trainers share."""

from __future__ import annotations

from collections.abc import Sequence

from yacs.config import CfgNode

from clip_ext.loader import LoadedClip
from clip_ext.text_bank import TextBank, build_text_bank
from clip_ext.text_files import DatasetTexts, load_texts


def load_class_texts(node: CfgNode, dataset: str) -> DatasetTexts:
    """Read the templates and descriptions that a trainer's `TEXT` node names, by default those of the data set."""
    return load_texts(dataset, templates=node.TEMPLATES, descriptions=node.DESCRIPTIONS)


def build_class_bank(clip: LoadedClip, node: CfgNode, texts: DatasetTexts, classnames: Sequence[str]) -> TextBank:
    """Encode the class texts, or read their features from the cache.

    Args:
        clip: With its text tower.
        node: A trainer's `TEXT` node.
        texts: What `load_class_texts` returned.
        classnames: In the order of the labels.
    """
    return build_text_bank(
        clip,
        classnames,
        texts.templates,
        texts.descriptions,
        mode=node.MODE,
        zeroshot_template=texts.zeroshot,
        clean=node.CLEAN,
        balance=node.get("BALANCE", False),
        on_missing=node.ON_MISSING,
        descriptor_format=node.DESCRIPTOR_FORMAT,
        keep_underscores=node.KEEP_UNDERSCORES,
        known_twins=texts.known_twins,
        cache_dir=node.CACHE_DIR,
    )

"""VQAJson: questions about a user's own images, or any published set in one of the usual file forms, by configuration alone."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.vqa_dataset import VQADataset


@DATASET_REGISTRY.register()
class VQAJson(VQADataset):
    """Questions in CSV, JSON Lines, LLaVA's JSON or VQAv2's two files; docs/CUSTOM_DATA.md shows the forms.

    Files, columns and encoding are named by DATASET.VQA.*; the folder is DATASET.ROOT, or DATASET.VQA.DIR inside it.
    """

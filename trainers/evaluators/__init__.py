"""Evaluators registered with Dassl; importing this package registers them all."""

from trainers.evaluators.label_distribution import LabelDistribution
from trainers.evaluators.vqa import VQA

__all__ = ["LabelDistribution", "VQA"]

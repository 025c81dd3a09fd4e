"""Evaluators registered with Dassl; importing this package registers them all."""

from trainers.evaluators.caption import Captioning
from trainers.evaluators.label_distribution import LabelDistribution
from trainers.evaluators.vqa import VQA

__all__ = ["Captioning", "LabelDistribution", "VQA"]

"""Evaluators registered with Dassl; importing this package registers them all."""

from trainers.evaluators.label_distribution import LabelDistribution

__all__ = ["LabelDistribution"]

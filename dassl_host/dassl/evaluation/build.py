"""Evaluator registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dassl.utils import Registry, check_availability

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from dassl.evaluation.evaluator import EvaluatorBase

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> EvaluatorBase:
    """Build the evaluator that ``TEST.EVALUATOR`` names.

    Args:
        cfg: Full config.
        kwargs: Passed to the evaluator; trainers give `lab2cname`.
    Raises:
        ValueError: If no evaluator of that name is registered (lists all names and the nearest one).
    """
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)

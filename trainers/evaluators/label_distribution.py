"""The evaluator `LabelDistribution`: classification as always, then how well predicted label distributions fit the votes."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from torch import Tensor
from yacs.config import CfgNode

from clip_ext.files import replacing
from clip_ext.label_metrics import (
    compute_calibration_error,
    compute_label_distances,
    compute_polarity_accuracy,
    count_confusions,
    find_polarities,
)

logger = logging.getLogger(__name__)

FILE_NAME = "label_distribution.json"
PRIMARIES = ("accuracy", "kl")
SHARES = frozenset({"dist_top1", "polarity_accuracy", "ece"})  # reported in percent, as Dassl does with its own


def add_config(cfg: CfgNode) -> None:
    """Add the evaluator's keys to Dassl's node `TEST` in place."""
    node = cfg.TEST
    node.LDL_PRIMARY = "accuracy"  # what best_val compares: accuracy | kl (the smaller, the better)
    node.LDL_SYNTHETIC = False  # report images whose target was made from their label too, under a prefix of their own


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per setting of the evaluator that cannot work or would be without effect."""
    problems = []
    if cfg.TEST.LDL_PRIMARY not in PRIMARIES:
        problems.append(f"TEST.LDL_PRIMARY is {cfg.TEST.LDL_PRIMARY!r}; expected one of {', '.join(PRIMARIES)}")
    elif cfg.TEST.EVALUATOR != LabelDistribution.__name__:
        for key, default in (("LDL_PRIMARY", "accuracy"), ("LDL_SYNTHETIC", False)):
            if cfg.TEST[key] != default:
                problems.append(
                    f"TEST.{key} is {cfg.TEST[key]!r}, but TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}; expected LabelDistribution"
                )
    return problems


@dataclass(frozen=True)
class _Rows:
    """What is known about some images, on the CPU.

    Attributes:
        labels: (N,), int64.
        predicted: Class of the largest logit, (N,), int64.
        probs: Predicted distribution, (N, C).
        truth: Target distribution, (N, C); zeros where there is none.
        voted: Whether the target was voted for rather than made from the label, (N,), bool.
    """

    labels: Tensor
    predicted: Tensor
    probs: Tensor
    truth: Tensor
    voted: Tensor

    @classmethod
    def joined(cls, batches: list[_Rows]) -> _Rows:
        """Return the rows of all batches."""
        return cls(**{field.name: torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(cls)})

    def distances(self, chosen: Tensor) -> dict[str, float]:
        """Return the mean distances over the chosen rows, (N,) bool; empty if there is none."""
        if not bool(chosen.any()):
            return {}
        distances = compute_label_distances(self.truth[chosen], self.probs[chosen])
        return {name: _in_percent(name, values.mean().item()) for name, values in distances.items()}


@EVALUATOR_REGISTRY.register()
class LabelDistribution(Classification):
    """Dassl's classification result, unchanged, then distances to the voted distributions, polarity and calibration.

    The predicted distribution is the trainer's own (`facts["distribution"]` of the logits), with its temperature; a foreign
    trainer's is the softmax of its logits. Targets are the facts `distribution` and `has_distribution` of the labels. Without
    either there is only the classification. Percent for shares (`dist_top1`, `polarity_accuracy`, `ece`), plain numbers for
    distances.

    Args:
        cfg: Full config; `TEST.LDL_PRIMARY` names the metric that comes first, `TEST.LDL_SYNTHETIC` adds synthetic targets.
        lab2cname: Label -> class name, which decides on polarity.
    Raises:
        ValueError: If a key of the evaluator has an impossible value.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        problems = find_problems(cfg)
        if problems:
            raise ValueError("\n".join(problems))
        super().__init__(cfg, lab2cname=lab2cname, **kwargs)
        self._names = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._batches: list[_Rows] = []
        self._has_facts = False

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add one batch.

        Args:
            mo: Logits, (B, C); may carry the predicted distribution.
            gt: Labels, (B,); may carry target distributions.
        """
        super().process(mo, gt)
        given, target = _facts(mo), _facts(gt)
        self._has_facts |= "distribution" in given or "distribution" in target
        logits, labels = mo.detach().as_subclass(Tensor).cpu(), gt.detach().as_subclass(Tensor).cpu()
        probs = given["distribution"].detach().float().cpu() if "distribution" in given else logits.float().softmax(dim=-1)
        truth = target["distribution"].float().cpu() if "distribution" in target else torch.zeros_like(probs)
        present = truth.sum(dim=-1) > 0
        voted = present & target["has_distribution"].cpu().bool() if "has_distribution" in target else present
        self._batches.append(_Rows(labels, logits.argmax(dim=-1), probs, truth, voted))

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the classification block, log the others, write `label_distribution.json` and return all metrics.

        Raises:
            ValueError: If `TEST.LDL_PRIMARY kl` has nothing to compare.
        """
        results = super().evaluate()
        if self._has_facts:
            rows = _Rows.joined(self._batches)
            further = self._measure(rows)
            self._log(rows, further)
            self._write(rows, results, further)
            results.update(further)
        else:
            logger.info("LabelDistribution: neither the data nor the trainer gives distributions; classification only")
        if self.cfg.TEST.LDL_PRIMARY == "accuracy":
            return results
        if "kl" not in results:
            raise ValueError("TEST.LDL_PRIMARY is 'kl', but no evaluated image has a voted distribution; expected accuracy")
        return OrderedDict([("negative_kl", -results["kl"]), *results.items()])

    def _measure(self, rows: _Rows) -> dict[str, float]:
        """Return every metric beyond classification."""
        figures = rows.distances(rows.voted)
        polarities = find_polarities(self._classnames(rows)) if self._names else None
        polar = None if polarities is None else compute_polarity_accuracy(rows.labels, rows.predicted, polarities)
        if polar is not None:
            figures["polarity_accuracy"] = _in_percent("polarity_accuracy", polar)
        figures["ece"] = _in_percent("ece", compute_calibration_error(rows.probs, rows.labels))
        if self.cfg.TEST.LDL_SYNTHETIC:
            synthetic = rows.distances(_synthetic(rows))
            figures |= {f"synthetic_{name}": value for name, value in synthetic.items()}
        return figures

    def _classnames(self, rows: _Rows) -> list[str]:
        names = self._names or {}
        return [names.get(label, str(label)) for label in range(rows.probs.shape[1])]

    def _log(self, rows: _Rows, figures: dict[str, float]) -> None:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in _count_targets(rows).items())
        lines = [f"=> label distribution (targets: {counts})"]
        for name, value in figures.items():
            percent = name.removeprefix("synthetic_") in SHARES
            lines.append(f"* {name}: {value:.1f}%" if percent else f"* {name}: {value:.4f}")
        logger.info("%s", "\n".join(lines))

    def _write(self, rows: _Rows, results: Mapping[str, float], further: Mapping[str, float]) -> None:
        content = {
            "targets": _count_targets(rows),
            "metrics": {name: float(value) for name, value in {**results, **further}.items()},
            "classes": self._classnames(rows),
            "confusion_matrix": count_confusions(rows.labels, rows.predicted, rows.probs.shape[1]).tolist(),
        }
        path = Path(self.cfg.OUTPUT_DIR) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _facts(tensor: Tensor) -> Mapping[str, Any]:
    return getattr(tensor, "facts", {})


def _synthetic(rows: _Rows) -> Tensor:
    """Return which rows have a target that nobody voted for, (N,) bool."""
    return (rows.truth.sum(dim=-1) > 0) & ~rows.voted


def _count_targets(rows: _Rows) -> dict[str, int]:
    voted, synthetic = int(rows.voted.sum()), int(_synthetic(rows).sum())
    return {"voted": voted, "synthetic": synthetic, "absent": len(rows.labels) - voted - synthetic}


def _in_percent(name: str, value: float) -> float:
    """Return a share in percent, and everything else as it is."""
    return 100.0 * value if name in SHARES else value

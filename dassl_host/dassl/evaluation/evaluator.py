"""Evaluators: fed batch by batch, they print a result block and return named metrics."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from dassl.evaluation.build import EVALUATOR_REGISTRY

if TYPE_CHECKING:
    from yacs.config import CfgNode


class EvaluatorBase:
    """Interface of all evaluators.

    Args:
        cfg: Full config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Any, gt: Any) -> None:
        """Take the model output and the ground truth of one batch."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the metrics of all batches since `reset`, the one that selects models first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 accuracy, error rate and macro F1 over the classes that occur, all in percent.

    Args:
        cfg: Full config; ``TEST.PER_CLASS_RESULT`` adds a block and a metric, ``TEST.COMPUTE_CMAT`` a file.
        lab2cname: Label -> class name, for the per-class block.
        kwargs: Ignored.
    Raises:
        ValueError: If ``TEST.PER_CLASS_RESULT`` is set without `lab2cname`.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT is True, which needs lab2cname; None was given")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._correct = 0
        self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add one batch.

        Args:
            mo: Logits or probabilities, (B, C).
            gt: Labels, (B,), integers.
        """
        predicted = mo.max(dim=1).indices
        self._correct += int(predicted.eq(gt).sum())
        self._total += gt.shape[0]
        self._y_true.extend(gt.tolist())
        self._y_pred.extend(predicted.tolist())

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the result block and return accuracy, error_rate, macro_f1 and, if asked for, perclass_accuracy.

        Raises:
            ValueError: If no image was processed.
        """
        if self._total == 0:
            raise ValueError("No image was evaluated; check TEST.SPLIT and DATASET.NAME")
        f1_score = _import_metrics().f1_score
        results = OrderedDict()
        results["accuracy"] = 100.0 * self._correct / self._total
        results["error_rate"] = 100.0 - results["accuracy"]
        seen = sorted(set(self._y_true))
        results["macro_f1"] = 100.0 * float(f1_score(self._y_true, self._y_pred, average="macro", labels=seen))
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {results['accuracy']:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._evaluate_classes(seen)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix()
        return results

    def _evaluate_classes(self, labels: list[int]) -> float:
        """Print the per-class block and return the mean of the classes' accuracies, percent."""
        hits: dict[int, list[bool]] = {label: [] for label in labels}
        for label, predicted in zip(self._y_true, self._y_pred):
            hits[label].append(label == predicted)
        print("=> per-class result")
        accuracies = []
        for label, matches in hits.items():
            accuracy = 100.0 * sum(matches) / len(matches)
            accuracies.append(accuracy)
            print(
                f"* class: {label} ({self._lab2cname[label]})\t"
                f"total: {len(matches):,}\tcorrect: {sum(matches):,}\tacc: {accuracy:.1f}%"
            )
        average = sum(accuracies) / len(accuracies)
        print(f"* average: {average:.1f}%")
        return average

    def _save_confusion_matrix(self) -> None:
        """Write the matrix, rows normalised over the true class, as a tensor: numpy arrays fail under weights_only."""
        confusion_matrix = _import_metrics().confusion_matrix
        matrix = torch.from_numpy(confusion_matrix(self._y_true, self._y_pred, normalize="true"))
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        torch.save(matrix, path)
        print(f"Confusion matrix is saved to {path}")


def _import_metrics() -> ModuleType:
    """Import scikit-learn's metrics on first use, unseen by a seeded run: the import draws from Python's generator."""
    state = random.getstate()
    from sklearn import metrics

    random.setstate(state)
    return metrics

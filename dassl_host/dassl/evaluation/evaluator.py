"""Evaluators: fed batch by batch, they print a result block and return named metrics."""

from __future__ import annotations

import os
from collections import OrderedDict
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
        labels, codes = torch.unique(torch.tensor([self._y_true, self._y_pred]), return_inverse=True)
        results = OrderedDict()
        results["accuracy"] = 100.0 * self._correct / self._total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = _macro_f1(codes, len(labels))
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {results['accuracy']:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._evaluate_classes()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix(codes, len(labels))
        return results

    def _evaluate_classes(self) -> float:
        """Print the per-class block and return the mean of the classes' accuracies, percent."""
        hits: dict[int, list[bool]] = {label: [] for label in sorted(set(self._y_true))}
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

    def _save_confusion_matrix(self, codes: torch.Tensor, n_labels: int) -> None:
        """Write the matrix, rows normalised over the true class, as a tensor: numpy arrays fail under weights_only."""
        true, predicted = codes
        counts = torch.bincount(true * n_labels + predicted, minlength=n_labels**2).view(n_labels, n_labels).double()
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        torch.save(counts / counts.sum(dim=1, keepdim=True).clamp(min=1), path)
        print(f"Confusion matrix is saved to {path}")


def _macro_f1(codes: torch.Tensor, n_labels: int) -> float:
    """Return the mean F1 of the classes that occur among the true labels, percent.

    Equals scikit-learn's, which is not used: importing it in the first evaluation draws from Python's generator, so a
    resumed run would not equal an uninterrupted one.

    Args:
        codes: True and predicted classes, (2, N), in [0, n_labels).
    """
    true, predicted = codes
    n_true = torch.bincount(true, minlength=n_labels)
    n_predicted = torch.bincount(predicted, minlength=n_labels)
    n_hits = torch.bincount(true[true == predicted], minlength=n_labels)
    f1 = 2.0 * n_hits.double() / (n_true + n_predicted)
    return 100.0 * f1[n_true > 0].mean().item()

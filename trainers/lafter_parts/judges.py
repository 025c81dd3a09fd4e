"""Who may judge a weak view: the text classifier through first, current or averaged LayerNorms, or the student itself.

Every judge runs on the one tower of the run; other LayerNorm values are swapped in by `torch.func.functional_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from clip_ext.heads import TextClassifier
from trainers.lafter_parts.students import LaFTerStudent


class EmaWeights:
    """Moving average of what a teacher needs: the student's LayerNorm values and its classifier.

    Args:
        student: Whose values are averaged; the average starts from the present ones.
        norms: Names of its driver's LayerNorm parameters.
        decay: Share that the average keeps per update, in (0, 1).
    """

    def __init__(self, student: LaFTerStudent, norms: list[str], decay: float) -> None:
        self._student = student
        self._names = norms
        self._decay = decay
        self._values = [value.detach().clone() for value in self._current()]

    def _current(self) -> list[Tensor]:
        parameters = dict(self._student.driver.named_parameters())
        return [*(parameters[name] for name in self._names), self._student.text_classifier_weight()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the student; called after every optimizer step."""
        for mean, value in zip(self._values, self._current(), strict=True):
            mean.lerp_(value, 1.0 - self._decay)

    @property
    def norms(self) -> dict[str, Tensor]:
        """Averaged LayerNorm values by name in the driver."""
        return dict(zip(self._names, self._values[:-1], strict=True))

    @property
    def classifier(self) -> Tensor:
        """Averaged classifier, (C, E)."""
        return self._values[-1]

    def state(self) -> list[Tensor]:
        """Return what a resumed run continues from."""
        return [value.cpu().clone() for value in self._values]

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Take back what `state` returned."""
        for mean, value in zip(self._values, state, strict=True):
            mean.copy_(value)


class Judges:
    """Functions from weak views (B, 3, H, W) to class probabilities (B, C), all without gradients.

    Build it before a checkpoint is loaded: the frozen judge sees through the LayerNorms of this moment.

    Args:
        student: The tuned model.
        text_classifier: A_pl, trained on texts only.
        autocast: Returns the context in which towers run.
    """

    def __init__(
        self, student: LaFTerStudent, text_classifier: TextClassifier, autocast: Callable[[], AbstractContextManager]
    ) -> None:
        self._student = student
        self._text_classifier = text_classifier
        self._autocast = autocast
        trained = {id(p) for p in student.adapt.norms.parameters()}
        self._first_norms = {name: p.detach().clone() for name, p in student.driver.named_parameters() if id(p) in trained}
        self.ema: EmaWeights | None = None

    def start_ema(self, decay: float, state: list[Tensor] | None = None) -> None:
        """Start the moving average from the student's present values, or from those of an interrupted run."""
        self.ema = EmaWeights(self._student, list(self._first_norms), decay)
        if state is not None:
            self.ema.load(state)

    @torch.no_grad()
    def frozen(self, weak: Tensor) -> Tensor:
        """Judge by A_pl through the LayerNorms that the CLIP came with."""
        return self._through(self._first_norms, self._text_classifier.weight, weak)

    @torch.no_grad()
    def shared(self, weak: Tensor) -> Tensor:
        """Judge by A_pl through the current LayerNorms, without prompts."""
        return self._through({}, self._text_classifier.weight, weak)

    @torch.no_grad()
    def averaged(self, weak: Tensor) -> Tensor:
        """Judge by the averaged classifier through the averaged LayerNorms, without prompts."""
        return self._through(self.ema.norms, self.ema.classifier, weak)

    @torch.no_grad()
    def student(self, weak: Tensor) -> Tensor:
        """Judge by the student, prompts included."""
        self._student.adapt.eval()
        with self._autocast():
            return self._student(weak).logits.softmax(dim=-1)

    def _through(self, norms: dict[str, Tensor], classifier: Tensor, weak: Tensor) -> Tensor:
        """Return the probabilities of a classifier on plain unit features, with some LayerNorm values replaced."""
        with self._autocast():
            features = functional_call(self._student.driver, norms, (weak,), {"cls_only_last": True}).features
        return F.linear(F.normalize(features.float(), dim=-1), classifier).softmax(dim=-1)

"""What a training run of GatedBLIP2 reports of each epoch: gates, gradients, speed, memory, and how far answers have moved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.gated_blip2.gate_hooks import GateContext
from trainers.gated_blip2.gate_stats import GateFigures, GateStatistics, GradientNorms, compute_divergence
from trainers.gated_blip2.prompts import IGNORED, TextBatch
from trainers.parameter_groups import ParameterGroup

if TYPE_CHECKING:
    from trainers.gated_blip2.model import GatedBlip2Model

__all__ = ["GateReport", "Probe"]


class Probe:
    """A fixed batch, by which the model with gates is compared with the one without.

    Args:
        model: With gates; its projection and queries may have been trained, too, and act on both sides.
        tokens: Of the pictures, as `encode_images` or the cache gives them, (B, N, Dv).
        text: Prompts with answers, padded on the right.
        style: Returns the style vectors of now, (B, W): a static one is learned.
    """

    def __init__(self, model: GatedBlip2Model, tokens: Tensor, text: TextBatch, style: Callable[[], Tensor | None]) -> None:
        self._model, self._tokens, self._text, self._style = model, tokens, text, style
        rows, columns = (text.labels != IGNORED).nonzero(as_tuple=True)
        # Each position says the token after it; the queries come first.
        self._mask = torch.zeros(len(text), model.n_queries + text.ids.shape[1], dtype=torch.bool)
        self._mask[rows, columns + model.n_queries - 1] = True

    @torch.no_grad()
    def measure(self) -> float:
        """Return KL(gated || ungated) of the next token, in nats, averaged over answer tokens; the model's mode is kept."""
        model, was_training = self._model, self._model.training
        model.eval()
        try:
            gated = self._answer_logits()
            with model.ungated():
                ungated = self._answer_logits()
        finally:
            model.train(was_training)
        return compute_divergence(gated, ungated).item()

    def _answer_logits(self) -> Tensor:
        """Return (answer tokens, V): nothing else is kept of what a large vocabulary makes of every position."""
        logits = self._model.logits(self._tokens, self._style(), self._text)
        return logits[self._mask.to(logits.device)]


class GateReport:
    """Watches a run, epoch by epoch, without changing a number of it or waiting for the device inside an epoch.

    Args:
        groups: What trains.
        write_scalar: Dassl's: tag, value, step.
        device: Of the model.
        context: Of the gates; None: there are none.
        probe: None: answers are not compared.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        write_scalar: Callable[[str, float, int], None],
        *,
        device: torch.device | str = "cpu",
        context: GateContext | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._write_scalar, self._device, self._probe = write_scalar, torch.device(device), probe
        self._gates, self._gradients = GateStatistics(), GradientNorms(groups)
        if context is not None:
            context.observer = self._gates
        self.before_epoch()

    def before_epoch(self) -> None:
        """Start anew; what an interrupted epoch has seen before is not counted again."""
        self._samples = self._updates = 0
        self._gates.figures()
        self._gradients.figures()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._start = time.perf_counter()

    def after_batch(self, n_samples: int) -> None:
        """Count the samples of a batch."""
        self._samples += n_samples

    def before_clipping(self) -> None:
        """Look at the gradients of an update; they are unscaled and not clipped yet."""
        self._updates += 1
        self._gradients.observe()

    def after_epoch(self, epoch: int, *, cache_hits: int | None = None) -> dict[str, Any]:
        """Return what is to be said of an epoch, in JSON's types, and write it as scalars.

        Args:
            epoch: From 0, as Dassl counts: the step of the scalars.
            cache_hits: Rows that the feature cache gave in this epoch; None without one.
        Returns:
            `samples`, `updates`, `seconds`, `samples_per_second`, `samples_per_update`, `gradient_norms`, and where there are
            any `gates`, `kl_ungated`, `cache_hits`, `peak_allocated_bytes` and `peak_reserved_bytes`.
        """
        gates, gradients = self._gates.figures(), self._gradients.figures()  # waits for the device, so before the clock
        seconds = time.perf_counter() - self._start
        found: dict[str, Any] = {
            "samples": self._samples, "updates": self._updates, "seconds": seconds,
            "samples_per_second": self._samples / max(seconds, 1e-9),
            "samples_per_update": self._samples / max(self._updates, 1),
        }  # fmt: skip
        found |= self._peaks()
        if cache_hits is not None:
            found["cache_hits"] = cache_hits
        if self._probe is not None:
            found["kl_ungated"] = self._probe.measure()
        scalars = {name: value for name, value in found.items() if name not in ("samples", "updates", "seconds")}
        for name, value in (scalars | _gate_scalars(gates) | _gradient_scalars(gradients)).items():
            self._write_scalar(f"report/{name}", value, epoch)
        if gates:
            found["gates"] = [row.to_dict() for row in gates]
        return found | {"gradient_norms": gradients}

    def _peaks(self) -> dict[str, int]:
        """Return the most memory of the GPU that tensors took, and that torch had reserved, since the epoch began."""
        if self._device.type != "cuda":
            return {}
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(self._device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self._device),
        }


def _gate_scalars(gates: Sequence[GateFigures]) -> dict[str, float]:
    figures = ("mean", "std", "min", "max", "saturated")
    pairs = ((f"gates/layer{row.layer}/{row.part}/{name}", getattr(row, name)) for row in gates for name in figures)
    return {tag: value for tag, value in pairs if value is not None}


def _gradient_scalars(gradients: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"gradient_norm/{group}": figures["mean"] for group, figures in gradients.items()}

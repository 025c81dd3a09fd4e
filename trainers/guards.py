"""What stops a run that learns nothing: unreached parameters, and losses that are infinite, NaN, exactly 0 or all alike."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientGuard", "LossGuard"]


class GradientGuard:
    """Finds parameters that are to train but get no gradient: a wiring fault.

    Args:
        module: Holds what trains; a parameter that is frozen (`requires_grad` False) is not asked for.
        window: A gradient that is None in all of the first `window` updates is a fault.
        zero_window: So is one that is None or 0 everywhere in all of the first `zero_window`; 0 = not checked.
        exempt: Names of parameters that may stay without gradient.
    """

    def __init__(self, module: nn.Module, *, window: int, zero_window: int, exempt: Collection[str] = ()) -> None:
        self._module, self._exempt = module, frozenset(exempt)
        self._window, self._zero_window = window, zero_window
        self.restart()

    def restart(self) -> None:
        """Watch the coming updates as if they were the first ones."""
        self._updates = 0
        self._missing: set[str] = set()
        self._zero: set[str] = set()

    def observe(self) -> None:
        """Look at the gradients of an update, before its step.

        Raises:
            RuntimeError: If a window is over and a parameter was not reached in any of its updates (names all of them).
        """
        if self._updates >= max(self._window, self._zero_window):
            return
        trainable = {n: p for n, p in self._module.named_parameters() if p.requires_grad and n not in self._exempt}
        if self._updates == 0:
            self._missing, self._zero = set(trainable), set(trainable) if self._zero_window else set()
        self._updates += 1
        with_gradient = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        self._missing = (self._missing & set(trainable)) - set(with_gradient)
        self._zero = self._zero & set(trainable)
        self._zero -= _non_zero({name: grad for name, grad in with_gradient.items() if name in self._zero})
        in_order = [name for name in trainable if name in self._missing]
        if self._updates == self._window and in_order:
            span = f" in any of the first {self._window} updates" if self._window > 1 else ""
            raise RuntimeError(f"declared trainable, but the loss does not reach{span}: {', '.join(in_order)}")
        in_order = [name for name in trainable if name in self._zero]
        if self._updates == self._zero_window and in_order:
            raise RuntimeError(
                f"declared trainable, but the gradient was 0 in all of the first {self._zero_window} updates: "
                f"{', '.join(in_order)}"
            )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on watching."""
        return {"updates": self._updates, "missing": sorted(self._missing), "zero": sorted(self._zero)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._updates, self._missing, self._zero = state["updates"], set(state["missing"]), set(state["zero"])


def _non_zero(gradients: dict[str, Tensor]) -> set[str]:
    """Return the names of gradients with a value other than 0; the device is asked once."""
    if not gradients:
        return set()
    found = torch.stack([grad.ne(0).any() for grad in gradients.values()]).tolist()
    return {name for name, reached in zip(gradients, found) if reached}


class LossGuard:
    """Collects, on the losses' device, whether they are finite and how many updates in a row they were exactly 0.

    Nothing is read before `problem` is asked, so that a run without a synchronisation per batch stays one.

    Args:
        zero_window: Updates in a row with a loss of 0 that are a fault; 0 = not checked.
        constant_window: Equal losses in a row, of those that were read anyway, that are a fault; 0 = not checked.
    """

    def __init__(self, *, zero_window: int, constant_window: int = 0) -> None:
        self._zero_window, self._constant_window = zero_window, constant_window
        self._latest, self._equal = 0.0, 0  # of the losses that were read: the latest, and how many in a row equal it
        self._finite: Tensor | None = None
        self._window: Tensor | None = None  # sum of the absolute losses since the latest update
        self._zero_updates: Tensor | int = 0

    def add(self, loss: Tensor) -> None:
        """Take the loss of a batch, a scalar."""
        loss = loss.detach()
        finite = torch.isfinite(loss)
        self._finite = finite if self._finite is None else self._finite & finite
        if self._zero_window:
            self._window = loss.abs() if self._window is None else self._window + loss.abs()

    def end_update(self) -> None:
        """Note that the batches since the latest call were one update."""
        if self._window is not None:
            self._zero_updates = torch.where(self._window == 0, self._zero_updates + 1, 0)
            self._window = None

    def read(self, loss: float) -> None:
        """Take a loss that was read from the device."""
        self._equal = self._equal + 1 if loss == self._latest else 1
        self._latest = loss

    def problem(self) -> Exception | None:
        """Return the error to raise, or None: FloatingPointError for a loss that is not finite, RuntimeError for the others."""
        if self._finite is not None and not self._finite:
            return FloatingPointError("Loss is infinite or NaN!")
        if self._zero_window and int(self._zero_updates) >= self._zero_window:
            return RuntimeError(
                f"the loss was exactly 0 in {int(self._zero_updates)} updates in a row; expected something to learn from: "
                "do the batches hold answers, and does the loss count them?"
            )
        if self._constant_window and self._equal >= self._constant_window:
            return RuntimeError(
                f"the loss was {self._latest:g} in {self._equal} read-outs in a row; expected it to move: is OPTIM.LR "
                "above 0, do the weights change, and do the batches differ?"
            )
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on counting."""
        constant = {"latest": self._latest, "equal": self._equal} if self._constant_window else {}
        return {"zero_updates": int(self._zero_updates)} | constant

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._zero_updates = state["zero_updates"]
        self._latest, self._equal = state.get("latest", 0.0), state.get("equal", 0)

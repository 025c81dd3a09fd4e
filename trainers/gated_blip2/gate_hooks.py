"""Gates on a Q-Former that stays Hugging Face's: hooks on the key and value maps, and the context that feeds them.

The hooks change no module and no name of the state dict. They act on the outputs of the `key` and `value` Linear, before the
split into heads, so every attention back-end reads gated keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainers.gated_blip2.gates import NODE, LayerFactors

__all__ = ["GateContext", "GateHooks", "attach", "cross_attention_layers", "resolve_layers"]


class GateContext:
    """The gates of the batch that is under way.

    `set` gives those of one forward pass of the Q-Former. They stay until the next `set` or `clear`, so that layers which are
    computed again during backward find them; a second forward pass with them is an error.

    Attributes:
        observer: Called by `set` with each layer and its factors (still attached to the graph); not while `ungated`.
    """

    def __init__(self) -> None:
        self.observer: Callable[[int, LayerFactors], None] | None = None
        self._factors: dict[int, LayerFactors] | None = None
        self._used = False
        self._off = False

    @property
    def is_off(self) -> bool:
        """Whether the Q-Former runs without gates."""
        return self._off

    def set(self, factors: Mapping[int, LayerFactors]) -> None:
        """Take the factors of the next forward pass: Q-Former layer, numbered from 1 -> factors."""
        self._factors, self._used = dict(factors), False
        if self.observer is not None and not self._off:
            for layer, of_layer in self._factors.items():
                self.observer(layer, of_layer)

    def clear(self) -> None:
        """Forget the factors; a forward pass needs new ones."""
        self._factors = None

    @contextmanager
    def ungated(self) -> Iterator[None]:
        """Let the Q-Former run as if nothing were attached."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def begin(self) -> None:
        """Note that the Q-Former starts a forward pass.

        Raises:
            RuntimeError: If there are no factors, or an earlier pass used them.
        """
        if self._off:
            return
        self._present()
        if self._used:
            raise RuntimeError(
                "the gate context is stale: its factors were used by an earlier forward pass of the Q-Former; call "
                "GateContext.set before each pass (to save activations, checkpoint the Q-Former's layers, not the Q-Former)"
            )
        self._used = True

    def get(self, layer: int, batch_size: int) -> LayerFactors:
        """Return the factors of a layer.

        Args:
            layer: Of the Q-Former, from 1.
            batch_size: Of the keys and values to gate.
        Raises:
            RuntimeError: If there are none, none for this layer, or they are of another batch size.
        """
        factors = self._present()
        if layer not in factors:
            raise RuntimeError(
                f"the gate context holds nothing for Q-Former layer {layer}; it holds layers {sorted(factors)}; attach the "
                f"layers that the gates were built for ({NODE}.GATE.LAYERS)"
            )
        found = factors[layer].batch_size
        if found not in (0, batch_size):
            raise RuntimeError(
                f"the gate context is of {found} samples, the keys of Q-Former layer {layer} are of {batch_size}; expected "
                "one style vector per image: call GateContext.set with this batch's factors"
            )
        return factors[layer]

    def _present(self) -> dict[int, LayerFactors]:
        if self._factors is None:
            raise RuntimeError(
                "the gate context is empty: the Q-Former has gates, and no factors were set for this forward pass; call "
                "GateContext.set first, or run inside GateContext.ungated"
            )
        return self._factors


class GateHooks:
    """Attached gates; `detach` takes them off."""

    def __init__(self, handles: Sequence[RemovableHandle], layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._handles = list(handles)

    def detach(self) -> None:
        """Leave the model as it was before `attach`; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()


class _Hook:
    """Forward hook of one key or value map."""

    def __init__(self, context: GateContext, layer: int, part: str) -> None:
        self.context, self.layer, self.part = context, layer, part

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.context.is_off:
            return None
        factors = self.context.get(self.layer, len(output))
        factor, shift = (factors.key, factors.key_shift) if self.part == "key" else (factors.value, factors.shift)
        # The keys keep their dtype; 1 and 0 are exact in every one.
        output = output if factor is None else output * factor.to(output.dtype)
        return output if shift is None else output + shift.to(output.dtype)


def cross_attention_layers(qformer: nn.Module) -> list[int]:
    """Return the layers of a transformers Q-Former that look at the image, numbered from 1."""
    return [number for number, layer in enumerate(qformer.encoder.layer, start=1) if layer.has_cross_attention]


def resolve_layers(wanted: Sequence[int], qformer: nn.Module) -> list[int]:
    """Return `GATE.LAYERS` in ascending order; () stands for all that have cross-attention.

    Raises:
        ValueError: If a layer has none or is named twice.
    """
    present = cross_attention_layers(qformer)
    if set(wanted) - set(present) or len(set(wanted)) != len(wanted):
        raise ValueError(
            f"{NODE}.GATE.LAYERS is {tuple(wanted)}; expected different ones of {present}, the Q-Former layers with "
            "cross-attention (numbered from 1), or () for all of them"
        )
    return sorted(wanted) or present


def attach(qformer: nn.Module, context: GateContext, layers: Sequence[int] = ()) -> GateHooks:
    """Let a Q-Former multiply its keys and values by the factors of a context.

    Args:
        qformer: transformers' `Blip2QFormerModel`.
        context: Asked at every forward pass.
        layers: Numbered from 1; () = all with cross-attention. The context must hold factors for each.
    Raises:
        ValueError: If a layer has no cross-attention.
        RuntimeError: If the Q-Former has gates already: they would act twice.
    """
    layers = resolve_layers(layers, qformer)
    maps = [(layer, part, _linear(qformer, layer, part)) for layer in layers for part in ("key", "value")]
    if any(isinstance(hook, _Hook) for _, _, linear in maps for hook in linear._forward_hooks.values()):
        raise RuntimeError("the Q-Former has gates already, and two would multiply; detach the first ones")
    handles = [linear.register_forward_hook(_Hook(context, layer, part)) for layer, part, linear in maps]
    handles.append(qformer.register_forward_pre_hook(lambda module, inputs: context.begin()))
    return GateHooks(handles, layers)


def _linear(qformer: nn.Module, layer: int, part: str) -> nn.Module:
    return getattr(qformer.encoder.layer[layer - 1].crossattention.attention, part)

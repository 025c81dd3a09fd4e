"""Which context a model's backgrounds belong to right now: any change of its weights or settings makes another one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainers.bgobj_llava.cache.key import ContextFields, cache_context, weights_fingerprint
from trainers.bgobj_llava.model.llava import BgObjLlava

Stamp = tuple[tuple[Any, ...], ...]
_BASE_PREFIX, _LORA = "llava.", "lora_"


class ContextWatch:
    """Keeps the cache context of a model up to date.

    Before each answer every tensor's place and version counter are compared with the last ones; only if one differs are weights
    hashed again. An optimizer step, loading, and in-place changes move a counter, and so does a new tensor.

    Args:
        model: Watched.
        preprocessing: How pixels become its input.
        base: Fingerprint of the files that the LLaVA was loaded from; "": all weights are hashed from memory.
        trained: Names (in the model's state dict) of weights of the LLaVA that are no longer those of the files. They are
            hashed from memory, as is everything that is not part of the LLaVA (separators, fusion, projectors, LoRA).
    """

    def __init__(
        self,
        model: BgObjLlava,
        preprocessing: Mapping[str, Any] | None = None,
        *,
        base: str = "",
        trained: Collection[str] = (),
    ) -> None:
        self._model, self._preprocessing = model, dict(preprocessing or {})
        self._base, self._trained = base, frozenset(trained)
        self._from_files = _places({name: tensor for name, tensor in _tensors(model).items() if self._is_base(name)})
        self._stamp: Stamp | None = None
        self._weights = ""
        self._contexts: dict[tuple[Any, ...], str] = {}

    def context(self, prefix_ids: Sequence[int]) -> str:
        """Return the hash of everything that a cached background depends on now, but for its patches and pixels.

        Args:
            prefix_ids: Token ids before the image.
        """
        self._refresh()
        situation = (tuple(prefix_ids), tuple(sorted(self._model.visible)), _dtype(self._model))
        if situation not in self._contexts:
            self._contexts[situation] = cache_context(self._fields(*situation))
        return self._contexts[situation]

    def _refresh(self) -> None:
        stamp = take_stamp(self._model)
        if stamp == self._stamp:
            return
        tensors, states = _tensors(self._model), [each for each in stamp if isinstance(each[0], tuple)]
        base = {name: tensor for name, tensor in tensors.items() if self._is_base(name)}
        is_as_loaded = bool(self._base) and _places(base) == self._from_files
        in_memory = {name: tensor for name, tensor in tensors.items() if not is_as_loaded or name not in base}
        self._weights = weights_fingerprint((self._base if is_as_loaded else "") + repr(states), in_memory)
        self._stamp = stamp
        self._contexts.clear()

    def _is_base(self, name: str) -> bool:
        return name.startswith(_BASE_PREFIX) and _LORA not in name and name not in self._trained

    def _fields(self, prefix_ids: tuple[int, ...], visible: tuple[str, ...], dtype: str) -> ContextFields:
        model, options = self._model, self._model.options
        names = ("split", "cls", "position", "projector", "separators", "n_fusion")
        llava = model.llava.model
        attention = [each.config._attn_implementation for each in (llava.language_model, llava.vision_tower)]
        return ContextFields(
            weights=self._weights,
            options={name: getattr(options, name) for name in names},
            preprocessing=self._preprocessing,
            prefix_ids=prefix_ids,
            separator_ids=dict(model.info.separator_ids),
            visible=visible,
            dtype=dtype,
            attention=" ".join(map(str, attention)),
            device=_device_name(model.device),
        )


def _tensors(model: BgObjLlava) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def take_stamp(model: nn.Module) -> Stamp:
    """Return the place and version of every tensor of a model, and which of peft's adapters are at work.

    Done before every answer, hence without names. A tensor made in inference mode cannot change, and has no version.
    """
    stamp: list[tuple[Any, ...]] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        waiting.extend(each for each in module._modules.values() if each is not None)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                stamp.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
        if "merged_adapters" in module.__dict__:  # a layer of peft; switching an adapter changes no tensor
            stamp.append((tuple(module.active_adapters), module.disable_adapters, tuple(module.merged_adapters)))
    return tuple(stamp)


def _places(tensors: Mapping[str, Tensor]) -> Stamp:
    return tuple((name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in tensors.items())


def _dtype(model: BgObjLlava) -> str:
    """Element type of embeddings and tower, and of autocast where it is on."""
    tower = next(model.llava.model.vision_tower.parameters()).dtype
    kind = model.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else "no autocast"
    return f"{model.dtype} {tower} {autocast} {torch.get_float32_matmul_precision()}"


def _device_name(device: torch.device) -> str:
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type

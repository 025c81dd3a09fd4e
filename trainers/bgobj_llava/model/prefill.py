"""Keys and values of what the language model has read so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache

Pairs = Sequence["tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class PrefillState:
    """What a sequence has left behind in the model; one per request, never shared.

    Attributes:
        llm: Cache of the language model.
        fusion: Cache of the fusion layers; None without such layers.
    """

    llm: DynamicCache
    fusion: DynamicCache | None

    @classmethod
    def new(cls, *, has_fusion: bool) -> PrefillState:
        return cls(DynamicCache(), DynamicCache() if has_fusion else None)

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, Pairs]) -> PrefillState:
        """Continue from stored keys and values, which stay as they are: a cache joins into new memory.

        Args:
            pairs: As `pairs` gives; without `fusion` (or with none in it) there are no fusion layers.
        """
        llm, fusion = list(pairs["llm"]), list(pairs.get("fusion") or ())
        return cls(DynamicCache(ddp_cache_data=llm), DynamicCache(ddp_cache_data=fusion) if fusion else None)

    @property
    def length(self) -> int:
        """Rows that the language model has read."""
        return self.llm.get_seq_length()

    @property
    def fused_length(self) -> int:
        """Rows that went through the fusion layers."""
        return 0 if self.fusion is None else self.fusion.get_seq_length()

    def pairs(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return (keys, values) of each layer, both (B, heads, length, d_head), for `llm` and `fusion`."""
        caches = {"llm": self.llm, "fusion": self.fusion}
        return {
            name: [] if cache is None else [(layer.keys, layer.values) for layer in cache.layers]
            for name, cache in caches.items()
        }

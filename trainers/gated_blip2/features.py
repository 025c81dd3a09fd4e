"""What the frozen encoders make of pictures: computed for a batch, or read from the feature cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dassl.data.datasets import Datum
from dassl.utils import read_image
from torch import Tensor

from trainers.gated_blip2.cache.build import build_cache
from trainers.gated_blip2.cache.key import CacheKey
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.data import PictureViews

if TYPE_CHECKING:
    from trainers.gated_blip2.cache.store import FeatureCache
    from trainers.gated_blip2.model import GatedBlip2Model
    from trainers.gated_blip2.style.encoder import StyleEncoder

logger = logging.getLogger(__name__)


class FeatureReader:
    """Reads the features of a loader's batches.

    Args:
        model: Whose vision tower encodes.
        style_encoder: None without one: rows then hold picture tokens only.
        views: How both see a picture.
        device: Where features go.
    """

    def __init__(
        self, model: GatedBlip2Model, style_encoder: StyleEncoder | None, views: PictureViews, device: torch.device
    ) -> None:
        self._model, self._style_encoder, self._views, self._device = model, style_encoder, views, device
        self._cache: FeatureCache | None = None
        self._is_released = False

    @property
    def cache(self) -> FeatureCache | None:
        """The cache that rows are read from; None before `fill`."""
        return self._cache

    @property
    def n_read(self) -> int:
        """Rows that came from the cache since it was opened."""
        return 0 if self._cache is None else self._cache.n_read

    def fill(
        self, items: Sequence[Datum], folder: Path, key: CacheKey, *, shard_images: int, batch_size: int, threads: int
    ) -> None:
        """Make sure that the cache has a row for the picture of every item, and read from it.

        Args:
            items: All that will be asked about.
            folder: Of the cache.
            key: What its rows belong to.
            shard_images: Images per file.
            batch_size: Images that are encoded at once.
            threads: That decode pictures.
        """
        paths = list(dict.fromkeys(item.impath for item in items))
        self._cache = build_cache(
            folder, key, paths, self._encode_all, shard_images=shard_images, batch_size=batch_size, load=self._open,
            threads=max(threads, 1),
        )  # fmt: skip

    def rows_of(self, items: Sequence[Datum]) -> list[int]:
        """Return the cache's row of each item's picture; `fill` comes first."""
        paths = list(dict.fromkeys(item.impath for item in items))
        rows = dict(zip(paths, self._cache.rows_of(paths), strict=True))
        return [rows[item.impath] for item in items]

    def release(self) -> None:
        """Free the memory of the frozen encoders, for good: all pictures that will be asked for are in the cache.

        The vision tower's last LayerNorm stays; some presets train it.
        """
        tower = self._model.blip2.vision_model
        for part in (tower.embeddings, tower.encoder, self._style_encoder):
            if part is not None:
                part.to("meta")
        self._is_released = True
        logger.info("The vision tower and the style encoder have left the memory: all pictures are in the feature cache")

    def of(self, batch: Mapping[str, Any]) -> Rows:
        """Return the features of a batch on the device: those of its `row`s, or of its pictures."""
        if "row" not in batch:
            return self.encode(batch["img"], batch.get("img2"))
        rows, donors = batch["row"].tolist(), batch["style_row"].tolist()
        found = self._cache.read(rows)
        if donors != rows:
            others = self._cache.read(donors)
            found = Rows(found.tokens, others.features, others.logits)
        return found.to(self._device, non_blocking=True)

    @torch.no_grad()
    def encode(self, images: Tensor, style_images: Tensor | None) -> Rows:
        """Encode pictures.

        Args:
            images: Input of the vision tower, (B, 3, S, S).
            style_images: Input of the style encoder, (B, 3, s, s); None without one.
        Raises:
            RuntimeError: If the encoders are released.
        """
        if self._is_released:
            raise RuntimeError(
                "pictures that are not in the feature cache cannot be encoded any more: training has released the encoders; "
                "build the trainer again, or set TRAINER.GATEDBLIP2.CACHE.ENABLE False"
            )
        tokens = self._model.encode_images(images.to(self._device))
        if self._style_encoder is None or style_images is None:
            return Rows(tokens)
        seen = self._style_encoder(style_images.to(self._device))
        return Rows(tokens, seen.features, seen.logits)

    def _open(self, path: str) -> dict[str, Tensor]:
        return self._views.see(read_image(path))

    def _encode_all(self, seen: list[dict[str, Tensor]]) -> Rows:
        columns = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
        return self.encode(columns["img"], columns.get("img2"))

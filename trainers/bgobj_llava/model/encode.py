"""Background and object patches through a frozen CLIP tower, together or without seeing one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clip_ext.towers import build_tower
from clip_ext.vision import ExtendedVisionTransformer


@dataclass(frozen=True, eq=False)
class SplitBatch:
    """Which patches of B images are objects; the rest, `~objects`, is background.

    Attributes:
        objects: (B, P), bool.
        ring: Background patches that are encoded as objects too, (B, P), bool.
        stock_order: Images that are encoded whole and keep raster order, (B,), bool.

    Raises:
        ValueError: If shapes disagree, or a ring patch is an object.
    """

    objects: Tensor
    ring: Tensor
    stock_order: Tensor

    def __post_init__(self) -> None:
        if self.objects.ndim != 2 or self.ring.shape != self.objects.shape or self.stock_order.shape != self.objects.shape[:1]:
            raise ValueError(
                f"objects, ring and stock_order have shapes {tuple(self.objects.shape)}, {tuple(self.ring.shape)} and "
                f"{tuple(self.stock_order.shape)}; expected (B, P), (B, P) and (B,)"
            )
        if bool((self.objects & self.ring).any()):
            raise ValueError("ring patches must be background patches; some are objects")

    @classmethod
    def of(cls, objects: Tensor, ring: Tensor | None = None, stock_order: Tensor | None = None) -> SplitBatch:
        """Build one without a ring and in the new order unless said."""
        n_images = len(objects)
        return cls(
            objects,
            torch.zeros_like(objects) if ring is None else ring,
            torch.zeros(n_images, dtype=torch.bool, device=objects.device) if stock_order is None else stock_order,
        )

    def __len__(self) -> int:
        return len(self.objects)

    def cpu(self) -> SplitBatch:
        return SplitBatch(self.objects.cpu(), self.ring.cpu(), self.stock_order.cpu())

    def indices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the raster numbers of the background and of the object patches of each image; ring patches are in both."""
        groups = ~self.objects, self.objects | self.ring
        bg, obj = ([row.nonzero().flatten() for row in group] for group in groups)
        return bg, obj


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """Features of B images before the projector.

    Attributes:
        bg: Of the background patches of each image, (n_b, d_v).
        obj: Of its object patches, (n_o, d_v).
        bg_index: Their raster numbers, ascending, (n_b,), int64.
        obj_index: Likewise, (n_o,), int64.
    """

    bg: list[Tensor]
    obj: list[Tensor]
    bg_index: list[Tensor]
    obj_index: list[Tensor]


class FrozenVision:
    """Features of a frozen CLIP tower at one block, before the post-LN. Holds the tower by reference.

    Args:
        tower: transformers' CLIP vision model.
        feature_block: Block whose output is the feature, from 1.
        own_cls: Whether each group gets a copy of the CLS row; without, groups are patches only.
    """

    def __init__(self, tower: nn.Module, *, feature_block: int, own_cls: bool) -> None:
        self._driver = ExtendedVisionTransformer(build_tower(tower))
        self._config = tower.config
        self._block = feature_block
        self._n_cls = 1 if own_cls else 0

    def encode_split(self, images: Tensor, splits: SplitBatch, execution: str) -> SplitFeatures:
        """Encode background and objects of each image.

        Args:
            images: Normalised RGB, (B, 3, S, S).
            splits: Their object patches.
            execution: `mask`: one pass with a block mask; `gather`: one pass per group; `whole`: patches see all others.

        Raises:
            ValueError: If mask execution is to encode ring patches, which it cannot do twice.
        """
        splits, place = splits.cpu(), find_place(images)
        bg_index, obj_index = ([index.to(place) for index in group] for group in splits.indices())
        if execution == "gather":
            return self._gather(images, splits.stock_order.nonzero().flatten().tolist(), bg_index, obj_index)
        if execution == "mask":
            if splits.ring.any():
                raise ValueError("mask execution cannot encode ring patches twice; use gather, or MASK.OVERLAP_RING 0")
            groups = splits.objects & ~splits.stock_order[:, None]  # an image that stays whole is one group
            features = self.encode_groups(images, groups.long().to(place))
        else:
            features = self.encode_whole(images)
        bg, obj = ([rows[index] for rows, index in zip(features, group, strict=True)] for group in (bg_index, obj_index))
        return SplitFeatures(bg, obj, bg_index, obj_index)

    def _gather(
        self, images: Tensor, stock: Sequence[int], bg_index: list[Tensor], obj_index: list[Tensor]
    ) -> SplitFeatures:
        """One pass per group, and one for the images that stay whole."""
        bg, obj = (
            self.encode_parts(images, [index[:0] if i in stock else index for i, index in enumerate(group)])
            for group in (bg_index, obj_index)
        )
        for number, rows in zip(stock, self.encode_whole(images[stock]) if stock else (), strict=True):
            bg[number], obj[number] = rows[bg_index[number]], rows[obj_index[number]]
        return SplitFeatures(bg, obj, bg_index, obj_index)

    @torch.no_grad()
    def encode_whole(self, images: Tensor) -> Tensor:
        """Normalised RGB, (B, 3, S, S) -> features of all patches, (B, P, d_v), each having seen all."""
        return self._driver(images, stop_after=self._block).tokens[:, 1:]

    @torch.no_grad()
    def encode_groups(self, images: Tensor, groups: Tensor) -> Tensor:
        """Encode in one pass; patches see those of their group.

        Args:
            images: (B, 3, S, S).
            groups: 0 or 1 for each patch, (B, P), int64.

        Returns:
            (B, P, d_v), in raster order.
        """
        output = self._driver(images, groups=groups, cls_copies=2 * self._n_cls, stop_after=self._block)
        return output.tokens[:, 2 * self._n_cls :]

    @torch.no_grad()
    def encode_parts(self, images: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
        """Encode some patches of each image, which see only one another.

        Args:
            images: (B, 3, S, S).
            indices: Raster numbers of the patches of each image, (n_i,), int64; may be empty.

        Returns:
            Their features, (n_i, d_v) for each image.
        """
        wanted = [number for number, index in enumerate(indices) if len(index)]
        empty = images.new_zeros(0, self._config.hidden_size, dtype=next(self._driver.parameters()).dtype)
        features = [empty] * len(indices)
        lengths = {len(indices[number]) for number in wanted}
        one_by_one = len(lengths) > 1 and str(self._config._attn_implementation).startswith("flash")
        for batch in [[number] for number in wanted] if one_by_one else [wanted] if wanted else []:
            tokens = self._encode_rows(images[batch], [indices[number] for number in batch])
            for number, rows in zip(batch, tokens, strict=True):
                features[number] = rows[self._n_cls : self._n_cls + len(indices[number])]
        return features

    def _encode_rows(self, images: Tensor, indices: Sequence[Tensor]) -> Tensor:
        """Pad to the longest group; padding is a repeated row that nobody sees."""
        longest = max(len(index) for index in indices)
        rows = torch.stack([torch.nn.functional.pad(1 + index, (0, longest - len(index)), value=1) for index in indices])
        rows = torch.nn.functional.pad(rows, (self._n_cls, 0)).to(find_place(images))  # row 0 is CLS
        mask = mask_padding([self._n_cls + len(index) for index in indices], find_place(images))
        keep = rows[0] if len(rows) == 1 else rows
        return self._driver(images, keep={1: keep}, attn_mask=mask, stop_after=self._block).tokens


def find_place(images: Tensor) -> torch.device:
    """Return where indices of `images` go; on the meta device numbers could not be read."""
    return torch.device("cpu") if images.is_meta else images.device


def mask_padding(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Return a mask that hides rows from `lengths[i]` on, (B, L, L), bool; None if all are equally long."""
    if len(set(lengths)) == 1:
        return None
    longest = max(lengths)
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]  # (B, L)
    return real[:, None, :].expand(-1, longest, -1)

"""What the loaders yield: an image on the canvas, its patch masks and its text, in fixed shapes for Dassl's collation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import Datum
from numpy.typing import NDArray
from torch import Tensor

from trainers.base import ExtrasWrapper
from trainers.bgobj_llava.augment import MaskAugment
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.geometry import (
    Canvas,
    MaskPolicy,
    PatchSplit,
    Placed,
    open_image,
    raw_patches,
    split_raw,
    stock_split,
)
from trainers.bgobj_llava.samples import question_of, turns_of
from trainers.epoch_order import sample_rng
from trainers.question_items import extras_of

Find = Callable[[Datum, Placed, int], Detections]


@dataclass(frozen=True)
class Normalisation:
    """From grey levels to what the vision tower takes.

    Attributes:
        mean, std: Of the processor, per channel, for values in [0, 1].
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return normalised pixels, (3, S, S), fp32, for RGB (S, S, 3), uint8."""
        image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.mean, self.std))
        return ((image - mean) / std).contiguous()


@dataclass(frozen=True)
class SceneView:
    """Turns an item's image into tensors; stands where Dassl expects an image transform.

    Attributes:
        canvas: Square input of the tower.
        policy: How boxes become patches.
        normalise: Pixels -> tower input.
        find: (item, placed image, index) -> detections; None: no split at all (`SPLIT none`), nothing is looked for.
        augment: Of training; None: detections as they are.
        keeps_pixels: Also yield `img_u8`, which a cache compares.
        ocr_tokens: Reference OCR tokens join the question.
    """

    canvas: Canvas
    policy: MaskPolicy
    normalise: Normalisation
    find: Find | None
    augment: MaskAugment | None = None
    keeps_pixels: bool = False
    ocr_tokens: bool = False

    def read(self, item: Datum, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return image and masks of an item.

        Args:
            item: With its boxes in `extras`.
            index: In its split.
            rng: Of this sample in this epoch.
        Raises:
            ValueError: If the image cannot be decoded, or the boxes are none (names the file).
        """
        placed = self.canvas.place(open_image(item.impath))
        split = self._split(item, placed, index, rng)
        pixels = placed.pixels
        if self.augment is not None and not split.stock_order:
            pixels = self.augment.jitter(pixels, split.background, rng)
        row = {"img": self.normalise(pixels)}
        if self.keeps_pixels:
            row["img_u8"] = torch.from_numpy(pixels)
        masks = {"obj_mask": split.objects, "obj_raw": split.raw, "obj_ring": split.ring}
        return row | {name: torch.from_numpy(mask) for name, mask in masks.items()} | {"stock_order": split.stock_order}

    def _split(self, item: Datum, placed: Placed, index: int, rng: np.random.Generator) -> PatchSplit:
        nothing = np.zeros(self.canvas.n_patches, dtype=bool)
        if self.find is None:
            return stock_split(nothing)
        found, policy = self.find(item, placed, index), self.policy
        if self.augment is not None:
            found, policy = self.augment.disturb(found, placed.size, rng), self.augment.grow(policy, rng)
            if self.augment.is_full(rng):
                return stock_split(nothing)
        try:
            raw = raw_patches(found.boxes, placed, self.canvas, policy, found.scores, found.masks)
        except ValueError as error:
            raise ValueError(f"{item.impath}: {error}") from error
        return split_raw(raw, policy, self.canvas.grid)


class BgObjWrapper(ExtrasWrapper):
    """Dassl's data set wrapper for questions about split images; `transform` is a `SceneView`.

    A row holds `img` (3, S, S) fp32, `obj_mask`, `obj_raw`, `obj_ring` (P,) bool, `stock_order` bool, `turns` (JSON list of
    question and answer pairs), `question`, `answer` (the most frequent reference), `label`, `domain`, `impath`, `index`, and in
    evaluation `img_u8` (S, S, 3) uint8. Everything else an item knows is read through `index`.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, view = self.data_source[index], self.transform
        rng = sample_rng(0, 0, index) if self.rng is None else self.rng
        extras = extras_of(item)
        turns = turns_of(extras, ocr_tokens=view.ocr_tokens)
        row = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        row |= {"turns": json.dumps(turns), "question": question_of(extras, ocr_tokens=view.ocr_tokens)}
        return row | {"answer": turns[-1][1] or ""} | view.read(item, index, rng)


def training_view(view: SceneView, augment: MaskAugment) -> SceneView:
    """Return the view of the training loader."""
    return replace(view, augment=augment, keeps_pixels=False, ocr_tokens=False)

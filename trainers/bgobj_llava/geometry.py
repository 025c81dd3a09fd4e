"""From an image and its boxes to patches: the square canvas of the vision tower, and which patches are objects.

S is the canvas side in pixels, p the patch side, G = S / p the grid, P = G * G; patch (row i, column j) has raster index
G * i + j. Needs numpy and Pillow only. Two frames occur: *original* pixels (after EXIF orientation) and *model* pixels (S x S).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Bools = NDArray[np.bool_]
SNAP_PX = 1e-3  # an edge this close to an integer is that integer: scaling must not cost a row of patches
ASPECTS = ("pad", "crop")
OBJECT_MODES = ("multi", "single")
NO_DETECTION = ("object_only", "bg_only", "baseline")


def open_image(path: str | os.PathLike) -> Image.Image:
    """Decode an image, upright and RGB.

    Raises:
        ValueError: If the file is no decodable image (names it).
        FileNotFoundError: If there is no file.
    """
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except FileNotFoundError:
        raise
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{os.fspath(path)} is no image that can be decoded: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB."""
    return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Placed:
    """An image on the canvas, and the map between the two frames: model = (original + offset) * scale.

    Attributes:
        pixels: What the tower sees before normalisation (`U`), (S, S, 3), uint8 RGB.
        scale: Model pixels per original pixel, x and y; equal with `pad`.
        offset: Where the original's corner lies, in original pixels, x and y; negative with `crop`.
        size: Width and height of the original in pixels.
    """

    pixels: NDArray[np.uint8]
    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]

    def to_model(self, boxes: NDArray) -> NDArray[np.float64]:
        """Map xyxy boxes (N, 4) from original to model pixels; nothing is rounded or clipped."""
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return (boxes + np.tile(self.offset, 2)) * np.tile(self.scale, 2)

    def to_original(self, boxes: NDArray) -> NDArray[np.float64]:
        """Map xyxy boxes (N, 4) from model to original pixels; nothing is rounded or clipped."""
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return boxes / np.tile(self.scale, 2) - np.tile(self.offset, 2)

    def mask_to_model(self, mask: Bools) -> Bools:
        """Map a mask (h, w) outward: every model pixel (S, S) that a pixel of the mask touches."""
        side = len(self.pixels)
        (left, right), (top, bottom) = self._spans(0), self._spans(1)
        steps = np.arange(side)
        # Spans grow with the original pixel, so those that touch a model pixel are a range.
        columns = np.searchsorted(right, steps, side="right"), np.searchsorted(left, steps, side="right")
        rows = np.searchsorted(bottom, steps, side="right"), np.searchsorted(top, steps, side="right")
        return _count(mask, rows, columns) > 0

    def mask_to_original(self, mask: Bools) -> Bools:
        """Map a mask (S, S) inward: every original pixel (h, w) that touches no model pixel outside the mask."""
        side = len(self.pixels)
        (left, right), (top, bottom) = (tuple(np.clip(edge, 0, side) for edge in self._spans(axis)) for axis in (0, 1))
        missing = _count(~mask, (top, bottom), (left, right))
        visible = (bottom > top)[:, None] & (right > left)[None, :]
        return (missing == 0) & visible

    def _spans(self, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and one past the last model pixel that each original column (axis 0) or row (axis 1) touches."""
        edges = (np.arange(self.size[axis] + 1) + self.offset[axis]) * self.scale[axis]
        return _snap_down(edges[:-1]), _snap_up(edges[1:])


@dataclass(frozen=True)
class Canvas:
    """The square input of a vision tower.

    Attributes:
        side_px: S.
        patch_px: p; divides S.
        fill_rgb: Colour of the padding, 0-255; for LLaVA the processor's mean.
        aspect: `pad` = centred on a square in the fill colour, then scaled; `crop` = Hugging Face's own way, the shorter side
            scaled to S and the centre cut out.
    Raises:
        ValueError: If the patch does not divide the side, or the aspect is unknown.
    """

    side_px: int
    patch_px: int
    fill_rgb: tuple[int, int, int] = (122, 116, 104)
    aspect: str = "pad"

    def __post_init__(self) -> None:
        if self.patch_px < 1 or self.side_px % self.patch_px:
            raise ValueError(f"an image side of {self.side_px} px is no multiple of the patch side of {self.patch_px} px")
        if self.aspect not in ASPECTS:
            raise ValueError(f"TRAINER.BGOBJLLAVA.IMAGE.ASPECT is {self.aspect!r}; expected one of {', '.join(ASPECTS)}")

    @property
    def grid(self) -> int:
        return self.side_px // self.patch_px

    @property
    def n_patches(self) -> int:
        return self.grid**2

    def place(self, image: Image.Image) -> Placed:
        """Turn the image upright and bring it to S x S pixels, bicubic."""
        image = upright_rgb(image)
        return self._pad(image) if self.aspect == "pad" else self._crop(image)

    def _pad(self, image: Image.Image) -> Placed:
        longest = max(image.size)
        corner = tuple((longest - length) // 2 for length in image.size)
        square = Image.new("RGB", (longest, longest), self.fill_rgb)
        square.paste(image, corner)
        scale = self.side_px / longest
        return Placed(self._resize(square, (self.side_px, self.side_px)), (scale, scale), corner, image.size)

    def _crop(self, image: Image.Image) -> Placed:
        shortest = min(image.size)
        target = tuple(int(self.side_px * length / shortest) for length in image.size)
        left, top = ((length - self.side_px) // 2 for length in target)
        pixels = self._resize(image, target)[top : top + self.side_px, left : left + self.side_px]
        scale = target[0] / image.width, target[1] / image.height
        return Placed(np.ascontiguousarray(pixels), scale, (-left / scale[0], -top / scale[1]), image.size)

    @staticmethod
    def _resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.array(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))

    def cover(self, pixels: Bools) -> NDArray[np.float64]:
        """Share of each patch that a pixel mask (S, S) covers, (P,), [0, 1]."""
        rows = pixels.reshape(self.grid, self.patch_px, self.side_px).sum(axis=1, dtype=np.int32)
        return rows.reshape(self.grid, self.grid, self.patch_px).sum(axis=2).reshape(-1) / self.patch_px**2


@dataclass(frozen=True)
class MaskPolicy:
    """How boxes become object patches (`TRAINER.BGOBJLLAVA.MASK`).

    Attributes:
        rho: Least covered share of an object patch, [0, 1]; 0 = any.
        dilate: Rings of patches added around objects, 0-4.
        block: Blocks of this side (patches, 1-3) become object as a whole.
        overlap_ring: Background patches this near to objects are encoded as objects, too, 0-4.
        max_obj_frac: With more object patches than this share, all are objects, (0, 1].
        object_mode: `multi` = union of all boxes; `single` = the one of highest score (ties: larger area).
        no_detection: Without objects: `object_only` = all patches are objects; `bg_only` = none; `baseline` = stock order.
    """

    rho: float = 0.0
    dilate: int = 1
    block: int = 1
    overlap_ring: int = 0
    max_obj_frac: float = 0.9
    object_mode: str = "multi"
    no_detection: str = "object_only"

    def problems(self, node: str = "TRAINER.BGOBJLLAVA.MASK") -> list[str]:
        """List every value outside its range, with the key to change."""
        ranges = {
            "RHO": (self.rho, 0 <= self.rho <= 1, "[0, 1]"),
            "DILATE": (self.dilate, self.dilate in range(5), "0-4 patches"),
            "BLOCK": (self.block, self.block in (1, 2, 3), "1-3 patches"),
            "OVERLAP_RING": (self.overlap_ring, self.overlap_ring in range(5), "0-4 patches"),
            "MAX_OBJ_FRAC": (self.max_obj_frac, 0 < self.max_obj_frac <= 1, "(0, 1]"),
            "OBJECT_MODE": (self.object_mode, self.object_mode in OBJECT_MODES, ", ".join(OBJECT_MODES)),
            "NO_DETECTION": (self.no_detection, self.no_detection in NO_DETECTION, ", ".join(NO_DETECTION)),
        }
        return [f"{node}.{key} is {value!r}; expected {allowed}" for key, (value, good, allowed) in ranges.items() if not good]


@dataclass(frozen=True, eq=False)
class PatchSplit:
    """Which patches of an image are objects.

    Attributes:
        raw: Patches that the boxes cover (`O_raw`), (P,), bool.
        objects: The canonical mask `O` after blocks, dilation, limit and the no-detection rule, (P,), bool.
        ring: Background patches that are also encoded as objects, (P,), bool.
        stock_order: The image is read in stock order without separators; `objects` is all True then.
        detected: Any object was found.
    """

    raw: Bools
    objects: Bools
    ring: Bools
    stock_order: bool = False
    detected: bool = True

    @property
    def background(self) -> Bools:
        """The complement of `objects`, (P,), bool."""
        return ~self.objects


def stock_split(raw: Bools, *, detected: bool = True) -> PatchSplit:
    """The split that is none: all patches in stock order."""
    return PatchSplit(raw, np.ones_like(raw), np.zeros_like(raw), stock_order=True, detected=detected)


def split_boxes(
    boxes: NDArray,
    placed: Placed,
    canvas: Canvas,
    policy: MaskPolicy,
    scores: NDArray | None = None,
    masks: Bools | None = None,
) -> PatchSplit:
    """Split an image's patches by its boxes, or by the masks that come with them.

    Args:
        boxes: xyxy in original pixels, (N, 4); N may be 0.
        placed: The image on the canvas.
        canvas: Its sizes.
        policy: What counts as object.
        scores: (N,), for `single`; None = all equal.
        masks: (N, h, w), bool, original pixels; they replace the boxes.
    Raises:
        ValueError: For boxes that are none, scores or masks of another length, masks of another size.
    """
    return split_raw(raw_patches(boxes, placed, canvas, policy, scores, masks), policy, canvas.grid)


def raw_patches(
    boxes: NDArray,
    placed: Placed,
    canvas: Canvas,
    policy: MaskPolicy,
    scores: NDArray | None = None,
    masks: Bools | None = None,
) -> Bools:
    """Find the patches that boxes or masks cover (`O_raw`), (P,), bool. Arguments and errors as in `split_boxes`."""
    pixels = object_pixels(boxes, placed, policy, scores, masks)
    share = canvas.cover(pixels)
    # Counting is exact, the quotient is not: 147 / 196 must reach a RHO of .75.
    return share > 0 if policy.rho == 0 else share >= policy.rho - 1e-9


def object_pixels(
    boxes: NDArray, placed: Placed, policy: MaskPolicy, scores: NDArray | None = None, masks: Bools | None = None
) -> Bools:
    """Union of boxes or masks in the model frame, rounded outward, (S, S), bool. Arguments and errors as in `split_boxes`."""
    boxes = check_boxes(boxes)
    for name, others in (("scores", scores), ("masks", masks)):
        if others is not None and len(others) != len(boxes):
            raise ValueError(f"{len(others)} {name} for {len(boxes)} boxes")
    if policy.object_mode == "single" and len(boxes) > 1:
        keep = [_best(boxes, scores)]
        boxes, masks = boxes[keep], None if masks is None else masks[keep]
    if masks is None or len(boxes) == 0:
        return fill_boxes(placed.to_model(boxes), len(placed.pixels))
    if masks.shape[1:] != placed.size[::-1]:
        raise ValueError(f"masks are {masks.shape[2]}x{masks.shape[1]} px, their image {placed.size[0]}x{placed.size[1]}")
    return placed.mask_to_model(masks.any(axis=0))


def fill_boxes(boxes: NDArray, side_px: int) -> Bools:
    """Draw xyxy boxes (N, 4) of the model frame, rounded outward and clipped, as one mask (S, S), bool."""
    pixels = np.zeros((side_px, side_px), dtype=bool)
    starts = np.clip(_snap_down(boxes[:, :2]), 0, side_px)
    ends = np.clip(_snap_up(boxes[:, 2:]), 0, side_px)
    for (left, top), (right, bottom) in zip(starts, ends, strict=True):
        pixels[top:bottom, left:right] = True
    return pixels


def split_raw(raw: Bools, policy: MaskPolicy, grid: int) -> PatchSplit:
    """Derive the canonical split from the covered patches (P,), P = grid * grid.

    Raises:
        ValueError: If the mask has another length.
    """
    raw = np.asarray(raw, dtype=bool)
    if raw.shape != (grid * grid,):
        raise ValueError(f"a patch mask of shape {raw.shape}; expected ({grid * grid},) for a grid of {grid}x{grid}")
    if not raw.any():
        return _split_nothing(raw, policy)
    objects = dilate(_fill_blocks(raw.reshape(grid, grid), policy.block), policy.dilate)
    if objects.sum() > policy.max_obj_frac * objects.size:
        objects = np.ones_like(objects)
    ring = dilate(objects, policy.overlap_ring) & ~objects
    return PatchSplit(raw, objects.reshape(-1), ring.reshape(-1))


def dilate(mask: Bools, times: int) -> Bools:
    """Dilate a mask (..., rows, columns) with a 3x3 square, `times` times."""
    for axis in (-2, -1):
        source = np.moveaxis(mask, axis, 0)
        grown = source.copy()
        for step in range(1, min(times, len(source) - 1) + 1):
            grown[step:] |= source[:-step]
            grown[:-step] |= source[step:]
        mask = np.moveaxis(grown, 0, axis)
    return mask


def check_boxes(boxes: NDArray, source: str = "") -> NDArray[np.float64]:
    """Return boxes as (N, 4) of float64, xyxy.

    Args:
        boxes: N boxes; an empty list is N = 0.
        source: Where they come from, for the message.
    Raises:
        ValueError: If they are no boxes, not finite, or have no area (lists the first three).
    """
    found = np.asarray(boxes, dtype=np.float64)
    found = found.reshape(0, 4) if found.size == 0 else found
    where = f"{source}: " if source else ""
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"{where}boxes of shape {found.shape}; expected (N, 4): x1, y1, x2, y2 in original pixels")
    bad = found[~(np.isfinite(found).all(axis=1) & (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1]))]
    if len(bad):
        raise ValueError(
            f"{where}{len(bad)} of {len(found)} boxes have x2 <= x1, y2 <= y1 or no finite number: "
            f"{bad[:3].tolist()}; expected x1, y1, x2, y2 in original pixels"
        )
    return found


def _split_nothing(raw: Bools, policy: MaskPolicy) -> PatchSplit:
    if policy.no_detection == "baseline":
        return stock_split(raw, detected=False)
    objects = np.full_like(raw, policy.no_detection == "object_only")
    return PatchSplit(raw, objects, np.zeros_like(raw), detected=False)


def _fill_blocks(mask: Bools, block: int) -> Bools:
    """Make every block (from the grid's corner; smaller at the far edges) all object that holds one object patch."""
    if block == 1:
        return mask
    grid = len(mask)
    padded = np.pad(mask, (0, -grid % block))
    n_blocks = len(padded) // block
    full = padded.reshape(n_blocks, block, n_blocks, block).any(axis=(1, 3))
    return full.repeat(block, axis=0).repeat(block, axis=1)[:grid, :grid]


def _best(boxes: NDArray, scores: NDArray | None) -> int:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return int(np.lexsort((areas, np.zeros(len(boxes)) if scores is None else scores))[-1])


def _snap_down(edges: NDArray) -> NDArray[np.int64]:
    return np.floor(edges + SNAP_PX).astype(np.int64)


def _snap_up(edges: NDArray) -> NDArray[np.int64]:
    return np.ceil(edges - SNAP_PX).astype(np.int64)


def _count(mask: Bools, rows: tuple[NDArray, NDArray], columns: tuple[NDArray, NDArray]) -> NDArray[np.int64]:
    """Count True in the rectangles between row edges and column edges (first, one past the last): rows x columns."""
    sums = np.pad(mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = rows, columns
    right, bottom = np.maximum(left, right), np.maximum(top, bottom)
    return sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]

"""What the split does to an image: seven panels in one PNG, and their counts and indices as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_ext.files import replacing
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.geometry import (
    Bools,
    Canvas,
    MaskPolicy,
    PatchSplit,
    Placed,
    object_pixels,
    split_boxes,
    upright_rgb,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OBJECT_RGB, CACHED_RGB, FRESH_RGB = (255, 140, 0), (0, 110, 255), (220, 0, 120)
OPACITY = 0.5
N_COLUMNS, PANEL_INCHES = 4, 3.2


@dataclass(frozen=True, eq=False)
class CachedPart:
    """What an entry of the cache contributed to an image.

    Attributes:
        background: Patches whose tokens came from the entry (`B_e`), (P,), bool.
        encoded: Patches that were encoded for this image (`OBJ'`), (P,), bool; the rest, plus any ring.
    """

    background: Bools
    encoded: Bools


@dataclass(frozen=True, eq=False)
class SplitView:
    """An image and its split.

    Attributes:
        original: Upright RGB, (h, w, 3), uint8.
        found: Objects, in original pixels.
        placed: The image on the canvas.
        canvas: Its sizes.
        policy: How objects became patches.
        split: The patches.
        cached: Of a cache hit; None without one.
    """

    original: NDArray[np.uint8]
    found: Detections
    placed: Placed
    canvas: Canvas
    policy: MaskPolicy
    split: PatchSplit
    cached: CachedPart | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a view.

    Attributes:
        title: Above it.
        pixels: RGB (rows, columns, 3), uint8, or a mask (rows, columns), bool.
    """

    title: str
    pixels: NDArray


def view_split(
    image: Image.Image, found: Detections, canvas: Canvas, policy: MaskPolicy, cached: CachedPart | None = None
) -> SplitView:
    """Split an image as training and use do, and keep every step.

    Args:
        image: Any mode; turned upright.
        found: Its objects, original pixels.
        canvas: Of the vision tower.
        policy: What counts as object.
        cached: Of a hit, if there was one.
    """
    upright = upright_rgb(image)
    placed = canvas.place(upright)
    split = split_boxes(found.boxes, placed, canvas, policy, found.scores, found.masks)
    return SplitView(np.array(upright), found, placed, canvas, policy, split, cached)


def draw_panels(view: SplitView) -> list[Panel]:
    """Return the panels: five, and two more for a cache hit. The fifth is the canonical patch mask itself, (G, G), bool."""
    canvas, split, pixels = view.canvas, view.split, view.placed.pixels
    on_model = object_pixels(view.found.boxes, view.placed, view.policy, view.found.scores, view.found.masks)
    panels = [
        Panel(f"original, {len(view.found)} objects", view.original),
        Panel("objects on the original", tint(view.original, _original_mask(view), OBJECT_RGB)),
        Panel(f"input, {canvas.side_px} px", pixels),
        Panel("objects on the input", tint(pixels, on_model, OBJECT_RGB)),
        Panel(_count_patches(split), split.objects.reshape(canvas.grid, canvas.grid)),
    ]
    if view.cached is not None:
        background, encoded = view.cached.background, view.cached.encoded
        panels += [
            Panel(f"cached background: {background.sum()}", tint(pixels, spread(background, canvas), CACHED_RGB)),
            Panel(f"encoded for this image: {encoded.sum()}", tint(pixels, spread(encoded, canvas), FRESH_RGB)),
        ]
    return panels


def describe_view(view: SplitView) -> dict[str, Any]:
    """Return counts and raster indices of every patch set, as plain JSON values."""
    sets = {"raw": view.split.raw, "objects": view.split.objects, "background": view.split.background, "ring": view.split.ring}
    if view.cached is not None:
        sets |= {"cached": view.cached.background, "encoded": view.cached.encoded}
    return {
        "width": view.placed.size[0],
        "height": view.placed.size[1],
        "grid": view.canvas.grid,
        "detected": view.split.detected,
        "stock_order": view.split.stock_order,
        "boxes": np.round(view.found.boxes.astype(float), 3).tolist(),
        "scores": np.round(view.found.scores.astype(float), 4).tolist(),
        "labels": list(view.found.labels),
        "counts": {name: int(mask.sum()) for name, mask in sets.items()},
        "indices": {name: np.flatnonzero(mask).tolist() for name, mask in sets.items()},
    }


def save_view(folder: str | Path, name: str, view: SplitView, facts: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Write `name.png` and `name.json`.

    Args:
        folder: Made if missing.
        name: Of the files, without ending.
        view: What to show.
        facts: More entries of the JSON, such as question, answer and trace; the file's name, question and answer head the
            picture.
    Returns:
        Both files.
    """
    folder, facts = Path(folder), facts or {}
    name_parts = [Path(str(facts["impath"])).name] if "impath" in facts else []  # the whole path stands in the JSON
    heading = "   ".join([*name_parts, *(str(facts[key]) for key in ("question", "answer") if key in facts)])
    picture = save_panels(folder / f"{name}.png", draw_panels(view), heading, view)
    record = folder / f"{name}.json"
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({**facts, **describe_view(view)}, ensure_ascii=False) + "\n", encoding="utf-8")
    return picture, record


def save_panels(path: Path, panels: Sequence[Panel], heading: str = "", view: SplitView | None = None) -> Path:
    """Draw panels side by side into a PNG; with a view, boxes and the covered patches are outlined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(N_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    # The object interface: pyplot would pick a global, possibly graphical backend.
    figure = Figure(figsize=(columns * PANEL_INCHES, rows * PANEL_INCHES + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    if heading:
        figure.suptitle(_plain(heading), fontsize=9, wrap=True)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        if panel.pixels.dtype == bool:
            axes.imshow(panel.pixels, cmap="gray_r", vmin=0, vmax=2, interpolation="nearest")
        else:
            axes.imshow(panel.pixels, interpolation="nearest")
        if view is not None:
            _annotate(axes, number, view)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    return path


def sweep_policies(policy: MaskPolicy) -> list[MaskPolicy]:
    """Return the policy with every DILATE and no ring, then with its own DILATE and every OVERLAP_RING."""
    plain = replace(policy, overlap_ring=0)
    return [replace(plain, dilate=step) for step in range(5)] + [replace(plain, overlap_ring=step) for step in range(1, 5)]


def sweep_image(image: Image.Image, found: Detections, canvas: Canvas, policies: Sequence[MaskPolicy]) -> list[SplitView]:
    """Split one image under several policies; needs no model."""
    return [view_split(image, found, canvas, policy) for policy in policies]


def sweep_panels(views: Sequence[SplitView]) -> list[Panel]:
    """Return one panel per view: object patches tinted on the input, ring patches in a second colour."""
    panels = []
    for view in views:
        tinted = tint(view.placed.pixels, spread(view.split.objects, view.canvas), OBJECT_RGB)
        tinted = tint(tinted, spread(view.split.ring, view.canvas), FRESH_RGB)
        objects, ring = view.split.objects.sum(), view.split.ring.sum()
        title = f"dilate {view.policy.dilate}, ring {view.policy.overlap_ring}: {objects} + {ring}"
        panels.append(Panel(title, tinted))
    return panels


def tint(pixels: NDArray[np.uint8], mask: Bools, colour: Sequence[int]) -> NDArray[np.uint8]:
    """Blend a colour over the masked pixels of RGB (h, w, 3); the others stay as they are."""
    blended = pixels * (1 - OPACITY) + np.asarray(colour) * OPACITY
    return np.where(mask[..., None], np.rint(blended), pixels).astype(np.uint8)


def spread(patches: Bools, canvas: Canvas) -> Bools:
    """Enlarge a patch mask (P,) to pixels (S, S)."""
    return patches.reshape(canvas.grid, canvas.grid).repeat(canvas.patch_px, axis=0).repeat(canvas.patch_px, axis=1)


def _count_patches(split: PatchSplit) -> str:
    if split.stock_order:
        return "stock order, no split"
    ring = f", circles: {split.ring.sum()} ring" if split.ring.any() else ""
    return f"objects: {split.objects.sum()} of {len(split.objects)} (dots: {split.raw.sum()} covered{ring})"


def _original_mask(view: SplitView) -> Bools:
    """Union of the boxes or masks that count, (h, w)."""
    height, width = view.original.shape[:2]
    # On a canvas of the original's own size nothing is scaled, hence the mask is that of the algebra.
    longest = max(width, height)
    own = Placed(np.empty((longest, longest, 0), dtype=np.uint8), (1.0, 1.0), (0, 0), (width, height))
    return object_pixels(view.found.boxes, own, view.policy, view.found.scores, view.found.masks)[:height, :width]


def _annotate(axes: Axes, number: int, view: SplitView) -> None:
    from matplotlib.patches import Rectangle

    if number in (0, 1):
        for (left, top, right, bottom), label in zip(view.found.boxes, view.found.labels, strict=True):
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="red"))
            if label and number == 0:
                axes.text(left, top, _plain(label), fontsize=7, color="red", verticalalignment="bottom")
    if number == 4:
        rows, columns = np.nonzero(view.split.raw.reshape(view.canvas.grid, -1))
        axes.scatter(columns, rows, s=6, color="orangered", label="covered")
        rows, columns = np.nonzero(view.split.ring.reshape(view.canvas.grid, -1))
        axes.scatter(columns, rows, s=6, facecolors="none", edgecolors="tab:blue", label="ring")


def _plain(text: str) -> str:
    """Keep a dollar sign from starting a formula."""
    return text.replace("$", r"\$")

"""How a picture becomes the vision tower's input, and which sizes it can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from trainers.gated_blip2.prompts import NODE

if TYPE_CHECKING:
    from transformers import Blip2Config

SIZE_KEY, STRETCH_KEY = "INPUT.SIZE", f"{NODE}.INTERPOLATE_POS"
# BLIP-2's own, which are CLIP's.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageViewFacts:
    """How a picture becomes the vision tower's input: resized to a square, then normalised.

    Attributes:
        side_px: Of the square.
        mean, std: Per RGB channel, for pixels in [0, 1].
        resample: Name of the interpolation, `bicubic` for instance.
    """

    side_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str


def problems_with_size(size_px: int, patch_px: int, interpolate: bool, *, native_px: int | None = None) -> list[str]:
    """Return one message per reason why pictures of this size cannot enter the vision tower.

    Args:
        size_px: Side of the square input.
        patch_px: Side of a patch.
        interpolate: Whether position embeddings may be stretched.
        native_px: Side that they are made for; None: not known, any multiple of the patch will do.
    """
    if size_px < patch_px or size_px % patch_px:
        below = max(size_px // patch_px, 1) * patch_px
        options = f"{below} or {below + patch_px}" if size_px > patch_px else str(patch_px)
        return [
            f"{SIZE_KEY} is {size_px} px, which is {size_px / patch_px:.2f} patches of {patch_px} px; expected a multiple, "
            f"{options} for instance"
        ]
    if native_px is not None and size_px != native_px and not interpolate:
        return [
            f"{SIZE_KEY} is {size_px} px; the vision tower's positions are made for {native_px} px; expected {native_px}, or "
            f"{STRETCH_KEY} True, which stretches them"
        ]
    return []


def read_view(origin: Path, config: Blip2Config, side_px: int | None) -> ImageViewFacts:
    """Read how a model's image processor prepares pictures.

    Args:
        origin: Model folder, or a configuration file, which has BLIP-2's own processor.
        config: Of the model.
        side_px: Side instead of the processor's; None: the processor's.
    """
    if not origin.is_dir():
        return ImageViewFacts(side_px or config.vision_config.image_size, MEAN, STD, "bicubic")
    from transformers import BlipImageProcessor

    processor = BlipImageProcessor.from_pretrained(origin, local_files_only=True)
    mean, std = (tuple(float(value) for value in values) for values in (processor.image_mean, processor.image_std))
    resample = Image.Resampling(int(processor.resample)).name.lower()
    return ImageViewFacts(side_px or int(processor.size["height"]), mean, std, resample)

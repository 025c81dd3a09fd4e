"""What the style encoder sees of a picture: the second view of an item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchvision import transforms
from torchvision.transforms import InterpolationMode

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class StyleView:
    """Preprocessing of a style encoder.

    Attributes:
        resize_px: Length of the shorter side after resizing.
        crop_px: Side of the square cut from the centre.
        mean: Of the channels red, green, blue in [0, 1]; subtracted.
        std: Likewise; divided by.
    """

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def transform(self) -> transforms.Compose:
        """Return what turns an RGB image of PIL into a tensor, (3, crop_px, crop_px), fp32."""
        return transforms.Compose(
            [
                transforms.Resize(self.resize_px, interpolation=InterpolationMode.BICUBIC),
                transforms.CenterCrop(self.crop_px),
                transforms.ToTensor(),
                self.normalise(),
            ]
        )

    def normalise(self) -> transforms.Normalize:
        """Return the last step alone, for a training with random crops."""
        return transforms.Normalize(self.mean, self.std)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON stores them; `read_view` reads them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_view(stored: Any) -> tuple[StyleView | None, list[str]]:
    """Return the view that a JSON holds, and what is wrong with it; no view where something is.

    Args:
        stored: Of the form of `StyleView.as_json`.
    """
    if not isinstance(stored, Mapping):
        return None, [f"'view' is {stored!r:.80}; expected an object with resize_px, crop_px, mean, std"]
    problems = [f"'view' has the unknown entry {name!r}" for name in sorted(stored.keys() - StyleView.__annotations__.keys())]
    for name in ("resize_px", "crop_px"):
        if type(stored.get(name)) is not int or stored[name] < 1:
            problems.append(f"'view' has {name} {stored.get(name)!r}; expected pixels >= 1")
    for name in ("mean", "std"):
        if not _is_triple(stored.get(name)) or (name == "std" and min(stored[name]) <= 0):
            problems.append(f"'view' has {name} {stored.get(name)!r}; expected three numbers{' > 0' * (name == 'std')}")
    if not problems and stored["crop_px"] > stored["resize_px"]:
        problems.append(f"'view' has crop_px {stored['crop_px']} over resize_px {stored['resize_px']}")
    if problems:
        return None, problems
    return StyleView(stored["resize_px"], stored["crop_px"], tuple(stored["mean"]), tuple(stored["std"])), []


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)

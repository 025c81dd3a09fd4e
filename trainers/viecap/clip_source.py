"""The CLIP of a run, loaded only if something has to be encoded."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from clip_ext.loader import ClipIdentity, LoadedClip, identify_clip, load_clip


class ClipSource:
    """A CLIP by name: which one it is, and, when asked for, its towers.

    Args:
        name: `MODEL.BACKBONE.NAME`.
        device: Where its towers go.
    """

    def __init__(self, name: str, device: torch.device | str) -> None:
        self.name, self._device = name, torch.device(device)

    @cached_property
    def identity(self) -> ClipIdentity:
        """Fingerprint, settings and width; nothing is built for it."""
        return identify_clip(self.name)

    @cached_property
    def loaded(self) -> LoadedClip:
        """The CLIP, fp32, frozen, in evaluation mode."""
        clip = load_clip(self.name, device=self._device)
        clip.model.requires_grad_(False).eval()
        return clip

    @property
    def is_loaded(self) -> bool:
        """Whether the towers are in memory."""
        return "loaded" in self.__dict__

    def encode_images(self, images: Tensor) -> Tensor:
        """Return features as the image tower makes them, (B, E), of normalised RGB images, (B, 3, H, W), on the device."""
        return self.loaded.model.encode_image(images)

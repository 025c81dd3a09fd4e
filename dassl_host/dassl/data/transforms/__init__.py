"""Image transforms chosen by ``INPUT.TRANSFORMS``."""

from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform

__all__ = ["INTERPOLATION_MODES", "build_transform"]

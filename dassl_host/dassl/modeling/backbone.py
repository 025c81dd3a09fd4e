"""Feature extractors."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Base of feature extractors; a subclass sets `_out_features` and defines `forward`."""

    @property
    def out_features(self) -> int | None:
        """Width of the features, None while it is not set."""
        return self.__dict__.get("_out_features")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return the backbone registered as `name`, built from `kwargs`."""
    check_availability(name, BACKBONE_REGISTRY.registered_names())
    if verbose:
        print(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)

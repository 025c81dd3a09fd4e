"""Stored tensors against the parameters they are meant for: every difference in names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LAYER_NUMBER = re.compile(r"\.\d+\.")


def find_differences(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return messages for the differences between stored tensors and parameters: names and shapes.

    Args:
        stored: Name -> tensor, as read.
        expected: Name -> parameter of the model as it is built now.
    """
    shared = sorted(stored.keys() & expected.keys())
    return [
        *_list_names("missing tensor", sorted(expected.keys() - stored.keys())),
        *_list_names("unexpected tensor", sorted(stored.keys() - expected.keys())),
        *(
            f"shape of {name}: stored {tuple(stored[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in shared
            if stored[name].shape != expected[name].shape
        ),
    ]


def _list_names(title: str, names: list[str]) -> list[str]:
    """Return one line per name; those that differ in a layer's number only share one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(LAYER_NUMBER.sub(".*.", name), []).append(name)
    return [
        f"{title}: {members[0]}" if len(members) == 1 else f"{title}s ({len(members)}): {pattern}"
        for pattern, members in alike.items()
    ]

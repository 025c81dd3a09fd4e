"""What stored features belong to: model, views, dtype, versions. Any difference is another cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trainers.adapters import BaseModel

CACHE_DIR = "output/cache"
# Raise when the meaning of stored rows changes (how pixels are made, what is taken from the towers), so that older caches are
# not read. A hash of the sources would throw hours of work away for every comment.
CODE_VERSION = 1
LIBRARIES = ("torch", "torchvision", "transformers", "pillow")  # the ones that decode, resize and encode
KEYS = "TRAINER.GATEDBLIP2.CACHE"
FIXED_TRANSFORMS = ("center_crop", "normalize", "instance_norm")  # of INPUT.TRANSFORMS; the others draw


class CacheDiffers(ValueError):
    """A folder holds features of something else.

    Attributes:
        differences: One line per field, with both values.
    """

    def __init__(self, message: str, differences: list[str]) -> None:
        super().__init__(message)
        self.differences = differences


@dataclass(frozen=True)
class CacheKey:
    """Everything that a row depends on besides its image.

    Attributes:
        fields: Name -> value, of JSON's types or nested mappings of these; compared by value.
    """

    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", json.loads(_canonical(self.fields)))  # tuples are lists in a file, too

    @property
    def digest(self) -> str:
        """SHA-256 of the fields, hexadecimal."""
        return hashlib.sha256(_canonical(self.fields).encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"gated_blip2_features-{self.digest[:24]}"

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Return one line per field that is another one in a stored header, with both values."""
        own, other = _flat(self.fields), _flat(stored)
        return [
            f"{name} is {_show(other, name)}, expected {_show(own, name)}"
            for name in sorted({*own, *other})
            if own.get(name, _ABSENT) != other.get(name, _ABSENT)
        ]


_ABSENT = object()


def feature_key(
    *,
    base: BaseModel,
    image_view: Any,
    dtype: torch.dtype,
    post_ln: bool,
    style_arch: str = "",
    style_sha256: str = "",
    style_view: Any = None,
    n_styles: int = 0,
) -> CacheKey:
    """Return the key of the features of a model.

    Args:
        base: The BLIP-2; its fingerprint must tell random weights apart, too.
        image_view: How a picture becomes the ViT's input: the image processor's settings, a dataclass or mapping.
        dtype: Of the stored ViT tokens.
        post_ln: Whether they are taken after the post-LN; False for presets that train it.
        style_arch: `STYLE.ARCH`; "" without a style encoder.
        style_sha256: Of the style encoder's weights; "" without one.
        style_view: How a picture becomes its input, as `image_view`; None without one.
        n_styles: Styles whose logits are stored; 0 = features only.
    """
    return CacheKey(
        {
            "model": base.id,
            "weights": base.fingerprint,
            "style_arch": style_arch,
            "style_sha256": style_sha256,
            "image_view": _plain(image_view),
            "style_view": _plain(style_view),
            "style_classes": n_styles,
            "dtype": str(dtype).removeprefix("torch."),
            "post_ln": post_ln,
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "code": CODE_VERSION,
        }
    )


def cache_folder(cache_dir: str | Path, key: CacheKey) -> Path:
    """Return the folder of a key.

    Args:
        cache_dir: `CACHE.DIR`; "" = output/cache, below the working directory.
        key: It names the folder.
    """
    return Path(cache_dir or CACHE_DIR) / key.folder_name


def problems_with_augmentation(transforms: Sequence[str]) -> list[str]:
    """Return a message if pictures are to change at random: no stored row would be theirs, and no encoder has seen such ones.

    Args:
        transforms: `INPUT.TRANSFORMS`.
    """
    changing = [name for name in transforms if name not in FIXED_TRANSFORMS]
    if not changing:
        return []
    return [
        f"INPUT.TRANSFORMS has {', '.join(changing)}: another picture of a file every time, but pictures are seen as the "
        f"frozen encoders' own processors make them, and {KEYS}.ENABLE keeps one row per file; expected none of them"
    ]


def _plain(view: Any) -> dict[str, Any] | None:
    if view is None:
        return None
    return asdict(view) if is_dataclass(view) else dict(view)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested fields by dots."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _show(fields: Mapping[str, Any], name: str) -> str:
    """Shorten hashes only: other values are words and numbers."""
    if name not in fields:
        return "absent"
    value = fields[name]
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True)

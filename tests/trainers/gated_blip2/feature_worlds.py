"""Pictures and an encoder whose rows say which picture they came from, for the tests of the feature cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trainers.adapters import BaseModel
from trainers.gated_blip2.cache.build import build_cache
from trainers.gated_blip2.cache.key import CacheKey, feature_key
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.cache.store import FeatureCache

N_TOKENS, WIDTH, STYLE_WIDTH, CLASSES = 5, 8, 6, 3
SHARD, BATCH = 4, 2
VIEW = {"side_px": 16, "mean": (0.5, 0.5, 0.5)}


def make_key(**changes: object) -> CacheKey:
    """The key of a model that does not exist."""
    facts = {
        "base": BaseModel("tiny", "b" * 64), "image_view": VIEW, "dtype": torch.bfloat16, "post_ln": True,
        "style_arch": "efficientnet_tiny", "style_sha256": "c" * 64, "style_view": {"resize_px": 20}, "n_styles": CLASSES,
    }  # fmt: skip
    return feature_key(**{**facts, **changes})


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write files of different bytes; what they show does not matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(f"picture {number}".encode())
    return [str(path) for path in paths]


def rows_for(paths: Sequence[str], dtype: torch.dtype = torch.bfloat16) -> Rows:
    """Rows that depend on each file's bytes only."""
    sizes = [N_TOKENS * WIDTH, STYLE_WIDTH, CLASSES]
    seeds = [int.from_bytes(Path(path).read_bytes()[-6:], "big") for path in paths]
    noise = [torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    tokens, features, logits = torch.stack(noise).split(sizes, dim=1)
    return Rows(tokens.reshape(-1, N_TOKENS, WIDTH).to(dtype), features.contiguous(), logits.contiguous())


class CountingEncoder:
    """Encodes files and remembers in which batches."""

    def __init__(self, encode: Callable[[Sequence[str]], Rows] = rows_for) -> None:
        self.batches: list[list[str]] = []
        self._encode = encode

    def __call__(self, paths: list[str]) -> Rows:
        self.batches.append(list(paths))
        return self._encode(paths)

    @property
    def names(self) -> list[list[str]]:
        return [[Path(path).stem for path in batch] for batch in self.batches]


def build(folder: Path, paths: Sequence[str], encode: Callable[[list], Rows] = rows_for, **options: object) -> FeatureCache:
    """Build with shards of four and batches of two."""
    options = {"shard_images": SHARD, "batch_size": BATCH, **options}
    return build_cache(folder, options.pop("key", make_key()), paths, encode, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file that is complete."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def assert_equal_rows(found: Rows, expected: Rows) -> None:
    """Same parts, dtypes and bits."""
    assert found.parts().keys() == expected.parts().keys()
    for name, part in expected.parts().items():
        mine = found.parts()[name]
        assert mine.dtype == part.dtype and torch.equal(mine, part), name

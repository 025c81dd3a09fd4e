"""The miniature world as files: a PNG per scene and a JSON Lines file per split."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .backgrounds import background_of_split
from .groups import ROLES, scene_group
from .records import make_record
from .scenes import SpriteSource
from .world import describe_scene, training_scene, world_sprites

Handwriting = Mapping[str, Mapping[str, Sequence[np.ndarray]]]  # by split, by numeral: pictures, (h, w) uint8

SPLITS: tuple[str, ...] = ("train", "val", "test")
GROUPS = "groups"
_WORLD = 20_261  # begins the seed of every scene; tiny12's scenes have other seeds


@dataclass(frozen=True)
class WorldSize:
    """How many scenes the splits have, how many groups of four scenes there are, and the pictures' side in pixels."""

    train: int
    val: int
    test: int
    groups: int
    size_px: int = 96

    @property
    def recipe(self) -> dict[str, int | str]:
        """Everything that decides the files' content: the sizes and the generator's own code."""
        return {"code": _code_version(), **asdict(self)}

    @property
    def n_scenes(self) -> int:
        return self.train + self.val + self.test + self.groups * len(ROLES)


def _code_version() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_text("utf-8").encode())  # text: a checkout with other line ends draws the same
    return digest.hexdigest()[:16]


def render_world(size: WorldSize, handwriting: Handwriting) -> Iterator[tuple[str, bytes]]:
    """Yield (relative path, content) of every file: pictures first, then the list of their split.

    Args:
        size: What to render. Scene ``i`` of a split does not depend on how many there are.
        handwriting: Digits for the scenes of each of ``SPLITS``; groups take those of test.
    """
    with tqdm(total=size.n_scenes, desc="MiniScenes", leave=False, disable=None) as progress:
        for number, split in enumerate((*SPLITS, GROUPS)):
            source = world_sprites(handwriting["test" if split == GROUPS else split])
            lines = []
            for index in range(getattr(size, split)):
                rng = np.random.default_rng([_WORLD, number, index])
                for record, image in _render(rng, split, index, source, size.size_px):
                    yield record["file"], _encode_png(image)
                    lines.append(json.dumps(record, separators=(",", ":")))
                    progress.update()
            yield f"{split}.jsonl", "".join(f"{line}\n" for line in lines).encode()


def _render(
    rng: np.random.Generator, split: str, index: int, source: SpriteSource, size_px: int
) -> Iterable[tuple[dict[str, Any], np.ndarray]]:
    """Scene ``index`` of a split, or the four of group ``index``: record and picture."""
    if split != GROUPS:
        background = background_of_split(rng, split)
        sample = training_scene(rng, sprite_source=source, background=background, size_px=size_px)
        yield make_record(sample, file=f"{split}/{index:05d}.png", split=split), sample.scene.image
        return
    # Half of the groups stand on backgrounds like those of training.
    background = background_of_split(rng, "train" if index % 2 else "test")
    group = scene_group(rng, sprite_source=source, background=background, size_px=size_px)
    for role, scene in group.items():
        file, group_id = f"{split}/{index:04d}_{role}.png", f"{index:04d}"
        sample = describe_scene(scene, rng)
        yield make_record(sample, file=file, split=split, group_id=group_id, role=role), scene.image


def _encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()

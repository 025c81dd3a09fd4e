"""FlickrStyle10K: humorous and romantic captions of Flickr30k's pictures.

C. Gan et al., "StyleNet: Generating Attractive Visual Captions with Styles", CVPR 2017. 7,000 of the 10,000 captions per
style are public, all for training: there is no official test split, and the split made here is unofficial.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from datasets.caption_reading import read_captions_of
from datasets.caption_records import CaptionReading, CaptionRecord
from datasets.caption_sources import Parts, choose_style
from datasets.captioning import NODE, PARTS, CaptionDataset
from datasets.row_faults import Faults
from datasets.splits import check_split_keys
from datasets.stored_rows import stored_rows

logger = logging.getLogger(__name__)

STYLES = {"humor": "humor/funny_train.txt", "romantic": "romantic/romantic_train.txt"}
NAMES = "train.json"  # beside the captions: a list of pictures, in the order of the lines
PUBLISHED = 7_000  # captions per style
TEST_SHARE = 1 / 7  # of the pictures


@DATASET_REGISTRY.register()
class FlickrStyle10K(CaptionDataset):
    """FlickrStyle10K: `humor/funny_train.txt` and `romantic/romantic_train.txt`; DATASET.CAPTION.STYLE chooses one of them.

    Picture names come from `train.json` beside the captions, which `scripts/viecap_convert.py flickr_style` makes of the
    published `train.p`. With it a seventh of the pictures is test and DATASET.VAL_PERCENT of the others val, both drawn by
    DATASET.SPLIT_SEED and stored; without it all captions are text to train on.
    """

    usual_folders = ("FlickrStyle_v0.9", "flickr_style10k", "FlickrStyle10K", "flickrstyle10k", "")
    usual_files = tuple(STYLES.values())
    image_folders = ("images", "flickr30k-images", "flickr30k_images", "Images", "")
    fallback_encoding = "latin-1"

    def read_parts(self, cfg: CfgNode, faults: Faults) -> Parts:
        """Return the rows of the styles, in an unofficial split.

        Raises:
            ValueError: If there is no such file, a list of names does not fit its lines, or a key is impossible.
        """
        check_split_keys(cfg)
        if not 0 <= cfg.DATASET.VAL_PERCENT < 1:
            raise ValueError(f"DATASET.VAL_PERCENT is {cfg.DATASET.VAL_PERCENT}; expected a share in [0, 1)")
        named = [f"{NODE}.{key}" for key in ("TRAIN", "VAL", "TEST", "COLUMNS") if cfg.DATASET.CAPTION[key]]
        if named:
            raise ValueError(f"{', '.join(named)}: expected nothing, the published files are read")
        files = {style: file for style, name in STYLES.items() if (file := self.folder / name).is_file()}
        if not files:
            raise ValueError(f"neither {' nor '.join(STYLES.values())}")
        rows = [row for style, file in files.items() for row in self._read_style(style, file)]
        pictures = sorted({row.image_id for row in rows if row.image_id})
        parts: Parts = {"train": [row for row in rows if not row.image_id]}
        if parts["train"]:
            self.caption_report.append(f"{len(parts['train']):,} captions without picture names ({NAMES}): they all train")
        for part, names in (self._split(cfg, pictures) if pictures else {}).items():
            chosen = set(names)
            parts[part] = parts.get(part, []) + [row for row in rows if row.image_id in chosen]
        return choose_style({part: found for part, found in parts.items() if found}, cfg.DATASET.CAPTION.STYLE)

    def _read_style(self, style: str, file: Path) -> list[CaptionRecord]:
        rows = [row for row in read_captions_of(file, self.form) if isinstance(row, CaptionRecord)]
        if len(rows) != PUBLISHED:
            self.caption_report.append(f"{style} has {len(rows):,} captions; published are {PUBLISHED:,}")
        listed = file.parent / NAMES
        if not listed.is_file():
            return [replace(row, style=style) for row in rows]
        names = self.form.read_json(listed)
        is_list = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
        if not is_list or len(names) != len(rows):
            found = f"{len(names)} names" if is_list else "no list of names"
            raise ValueError(f"{listed} holds {found}; expected {len(rows)}, one per line of {file.name}")
        return [_with_picture(row, name, style) for row, name in zip(rows, names, strict=True)]

    def _split(self, cfg: CfgNode, pictures: Sequence[str]) -> dict[str, list[str]]:
        """Return part -> pictures, drawn once and stored."""
        settings = cfg.DATASET
        recipe = {
            "official": False,
            "seed": settings.SPLIT_SEED,
            "test": settings.TEST_PERCENT or TEST_SHARE,
            "val": settings.VAL_PERCENT,
        }
        self.split_kind = f"seeded {settings.SPLIT_SEED}, unofficial"
        logger.warning("FlickrStyle10K has no official test split: figures on this seeded one may not stand beside others")
        name = f"split_unofficial-seed_{settings.SPLIT_SEED}"
        inputs = {"recipe": recipe, "pictures": list(pictures)}
        return stored_rows(self.folder, cfg, name, inputs, lambda: draw_parts(pictures, recipe), lambda rows: dict(rows))


def draw_parts(pictures: Sequence[str], recipe: dict[str, float]) -> dict[str, list[str]]:
    """Divide pictures by a seed.

    Args:
        pictures: Sorted.
        recipe: `seed`; `test`, the share of all pictures in test; `val`, the share of the others in val.
    Returns:
        Part -> pictures, sorted.
    """
    drawn = random.Random(recipe["seed"]).sample(list(pictures), len(pictures))
    n_test = round(len(drawn) * recipe["test"])
    n_val = round((len(drawn) - n_test) * recipe["val"])
    parts = (drawn[n_test + n_val :], drawn[n_test : n_test + n_val], drawn[:n_test])
    return {part: sorted(found) for part, found in zip(PARTS, parts, strict=True)}


def _with_picture(row: CaptionReading, name: str, style: str) -> CaptionRecord:
    """Name the picture of a row: `id_hash.jpg` of FlickrStyle10K is `id.jpg` of Flickr30k."""
    short = f"{name.removesuffix('.jpg').partition('_')[0]}.jpg"
    return replace(row, images=tuple(dict.fromkeys((short, name))), image_id=short, style=style)

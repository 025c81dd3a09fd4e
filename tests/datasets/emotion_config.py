"""The config of an emotion data set, as a run would have it."""

from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

import datasets  # noqa: F401  (registers the data sets)
from trainers.config import add_trainer_configs


def build(name: str, root: Path, output: str = "", **changes: Any) -> DatasetBase:
    """Build the registered data set with keys of the node DATASET changed."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    settings = {"DATASET.NAME": name, "DATASET.ROOT": str(root), "SEED": 1, "OUTPUT_DIR": output}
    settings |= {f"DATASET.{key}": value for key, value in changes.items()}
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return DATASET_REGISTRY.get(name)(cfg)


def names_of(items: list, folder: Path) -> list[str]:
    """Paths of the images relative to the data set's folder."""
    return [Path(item.impath).relative_to(folder).as_posix() for item in items]

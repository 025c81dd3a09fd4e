"""Data set registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dassl.utils import Registry, check_availability

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from dassl.data.datasets.base_dataset import DatasetBase

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """Build the data set that ``DATASET.NAME`` names.

    Raises:
        ValueError: If no data set of that name is registered (lists all names and the nearest one).
    """
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)

"""Data sets, transforms, samplers and the loaders built from them."""

from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]

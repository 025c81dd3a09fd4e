"""Fetch a benchmark through torchvision, which knows addresses and checksums."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

OFFLINE = "HF_HUB_OFFLINE"  # what --offline sets


@dataclass(frozen=True)
class TorchvisionSource:
    """Where torchvision gets a data set from and puts it.

    Attributes:
        reader: Class in `torchvision.datasets`.
        beside: It adds the data set's own folder to the root that it is given, so DATASET.ROOT is that root; otherwise it
            gets the data set's folder.
    """

    reader: str
    beside: bool = False

    def fetch(self, folder: Path) -> None:
        """Download into the data set's folder and unpack there.

        Raises:
            OSError: If that fails (names reader, folder and reason).
        """
        from torchvision import datasets as torchvision_datasets  # slow to import, and seldom needed

        root = folder.parent if self.beside else folder
        logger.info("DATASET.DOWNLOAD: torchvision's %s fetches and unpacks into %s", self.reader, root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            getattr(torchvision_datasets, self.reader)(root=str(root), download=True)
        except (OSError, RuntimeError) as error:  # no network, disk full; a wrong checksum is a RuntimeError
            raise OSError(f"DATASET.DOWNLOAD: torchvision's {self.reader} could not fetch into {root}: {error}") from error


def check_online(name: str) -> None:
    """Refuse a download under `--offline`.

    Raises:
        ValueError: If the run was started offline.
    """
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"DATASET.DOWNLOAD is True, but --offline ({OFFLINE}=1) forbids fetching {name}; drop one of them")

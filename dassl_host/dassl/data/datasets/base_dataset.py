"""One labelled image (`Datum`) and the four lists that make a data set (`DatasetBase`)."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence

from dassl.utils import check_isfile, download_url


class Datum:
    """An image file with its label.

    The attributes behind the properties keep their public names, because pickled lists of this class exist in the wild.

    Args:
        impath: Path of an existing image file.
        label: Class index from 0; -1 means unlabelled.
        domain: Domain index from 0.
        classname: Name of the class.
    Raises:
        AssertionError: If `impath` is no string or names no file.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        assert isinstance(impath, str), f"impath is {impath!r} ({type(impath).__name__}); expected a string"
        assert check_isfile(impath), f"No image file at {impath!r}"
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname


class DatasetBase:
    """The splits of a data set and the classes found in its labelled training part.

    Args:
        train_x: Labelled training items; the class list is read from them.
        train_u: Unlabelled training items, if any.
        val: Validation items, if any.
        test: Test items.
    """

    dataset_dir: str = ""  # folder below DATASET.ROOT
    domains: Sequence[str] = ()  # names of all domains

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum] | None:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Return the largest label plus one; labels without images count."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return label -> class name, and the class names ordered by label."""
        names = {item.label: item.classname for item in data_source}
        lab2cname = {label: names[label] for label in sorted(names)}
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Check that both lists are non-empty and name known domains.

        Raises:
            AssertionError: If one is empty.
            ValueError: If a name is not in `domains`.
        """
        assert len(source_domains) > 0, "DATASET.SOURCE_DOMAINS is empty"
        assert len(target_domains) > 0, "DATASET.TARGET_DOMAINS is empty"
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Iterable[str]) -> None:
        """Raise ValueError unless every name is in `domains`."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"Unknown domain {domain!r}; expected one of {list(self.domains)}")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive and unpack it beside itself.

        Args:
            url: Address of the archive.
            dst: File to write, ending in .zip, .tar or .tar.gz.
            from_gdrive: Fetch from Google Drive through gdown.
        Raises:
            ValueError: If `dst` has another ending.
        """
        folder = os.path.dirname(dst) or "."
        os.makedirs(folder, exist_ok=True)
        if from_gdrive:
            import gdown

            gdown.download(url, dst, quiet=False)
        else:
            download_url(url, dst)
        print("Extracting file ...")
        _unpack(dst, folder)
        print(f"File extracted to {folder}")

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]] | tuple[list[Datum], ...]:
        """Draw `num_shots` items per class from each source with the global `random` generator.

        Args:
            data_sources: Lists to draw from, independently.
            num_shots: Items per class; below 1 returns the sources unchanged.
            repeat: Draw with replacement where a class has too few items; otherwise such a class is taken whole.
        Returns:
            One list for one source, else one per source.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        drawn = [self._draw_shots(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw_shots(self, data_source: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        """Draw per class, classes in order of first appearance: the published few-shot lists depend on this order."""
        chosen: list[Datum] = []
        for items in self.split_dataset_by_label(data_source).values():
            if len(items) >= num_shots:
                items = random.sample(items, num_shots)
            elif repeat:
                items = random.choices(items, k=num_shots)
            chosen.extend(items)
        return chosen

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Group items by label, in order of first appearance."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Group items by domain, in order of first appearance."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def _unpack(archive: str, folder: str) -> None:
    """Unpack a .zip, .tar or .tar.gz; members that would leave `folder` are refused."""
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    elif archive.endswith((".tar", ".tar.gz")):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    else:
        raise ValueError(f"Cannot unpack {archive!r}; expected a name ending in .zip, .tar or .tar.gz")

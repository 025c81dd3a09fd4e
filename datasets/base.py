"""What every data set of this package shares: items with extras, few-shot choice, checks, and files made once."""
import hashlib
import json
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum

from clip_ext.files import replacing

logger = logging.getLogger(__name__)

DEFAULT_ROOT = "data"  # of the built-in data sets, below the working directory
MANIFEST = "manifest.json"
SUBSAMPLE_CHOICES = ("all", "base", "new")


class Item(Datum):
    """A Dassl datum that carries named extras into the batch.

    Args:
        impath: Path of an existing image.
        label: Class index, or -1 for unlabelled.
        domain: Domain index.
        classname: Class name.
        extras: Numbers, strings or tuples of numbers; a tuple has the same length in every item of a data set (it becomes
            one float32 tensor per batch). Ragged lists travel as JSON text.
    Raises:
        TypeError: If an extra is of another type (names key and value).
    """

    def __init__(
        self,
        impath: str = "",
        label: int = 0,
        domain: int = 0,
        classname: str = "",
        *,
        extras: Mapping[str, float | str | tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__(impath=impath, label=label, domain=domain, classname=classname)
        self._extras = dict(extras or {})
        for key, value in self._extras.items():
            parts = value if isinstance(value, tuple) else (value,)
            allowed = (int, float) if isinstance(value, tuple) else (int, float, str)
            if not all(isinstance(part, allowed) for part in parts):
                raise TypeError(f"extra {key!r} is {value!r}; expected a number, a string or a tuple of numbers")

    @property
    def extras(self) -> Mapping[str, float | str | tuple[float, ...]]:
        return self._extras


class NamedClassesDataset(DatasetBase):
    """A data set that names its classes itself; Dassl reads them off the labels of `train_x`, where one may be missing.

    Attributes:
        _names: Class names in the order of their labels; set before `super().__init__`.
    """

    _names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._names)

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return list(self._names)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return dict(enumerate(self._names))


def choose_few_shots(
    train: Sequence[Item], val: Sequence[Item], *, shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """Draw `shots` training items per class, then at most four validation items per class.

    The same items as CoOp chooses for this split and seed (`set_random_seed(seed)`, then `generate_fewshot_dataset` twice),
    without touching the global generator.

    Args:
        shots: DATASET.NUM_SHOTS; below 1 both lists are returned whole.
        seed: SEED; it has to be fixed, or two runs would learn from different images.
    Raises:
        ValueError: If items are to be drawn and `seed` is negative.
    """
    if shots < 1:
        return list(train), list(val)
    if seed < 0:
        raise ValueError(f"SEED is {seed}, but DATASET.NUM_SHOTS {shots} draws images; give --seed a number >= 0")
    rng = random.Random(seed)
    return _draw_per_class(train, shots, rng), _draw_per_class(val, min(shots, 4), rng)


def _draw_per_class(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    chosen: list[Item] = []
    for members in by_class.values():  # in order of first appearance, as CoOp draws
        chosen += rng.sample(members, count) if len(members) >= count else members
    return chosen


def subsample_classes(choice: str, *splits: Sequence[Item]) -> tuple[list[Item], ...]:
    """Keep half of the classes, for base-to-new generalisation, and number them from 0.

    Args:
        choice: DATASET.SUBSAMPLE_CLASSES: `all`, `base` (the first ceil(C/2) of the sorted labels) or `new` (the rest).
        splits: Lists of items; the labels of the first one decide.
    Raises:
        ValueError: If `choice` is another word.
    """
    if choice not in SUBSAMPLE_CHOICES:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is {choice!r}; expected one of {', '.join(SUBSAMPLE_CHOICES)}")
    if choice == "all":
        return tuple(list(split) for split in splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    kept = labels[:half] if choice == "base" else labels[half:]
    new_label = {label: index for index, label in enumerate(kept)}
    return tuple(
        [
            Item(item.impath, new_label[item.label], item.domain, item.classname, extras=item.extras)
            for item in split
            if item.label in new_label
        ]
        for split in splits
    )


def check_classes(name: str, train: Sequence[Datum], test: Sequence[Datum]) -> None:
    """Refuse a labelled classification set that cannot be learned from.

    Raises:
        ValueError: If there is one class only, or classes without a training image (names them).
    """
    trained = {item.label for item in train}
    classes = {item.label: item.classname for item in (*train, *test)}
    if len(classes) < 2:
        raise ValueError(f"data set {name} has one class only, {list(classes.values())}; classification needs two")
    missing = [classname for label, classname in sorted(classes.items()) if label not in trained]
    if missing:
        raise ValueError(f"data set {name} has no training image of {len(missing)} classes: {missing[:5]}")


def resolve_builtin_root(root: str, name: str) -> Path:
    """The data root of a built-in set: DATASET.ROOT, or ./data (said in the log) if that is empty."""
    path = Path(root or DEFAULT_ROOT).expanduser().resolve()
    if not root:
        logger.info("DATASET.ROOT is empty: %s uses %s", name, path)
    return path


def ensure_files(
    folder: Path, recipe: Mapping[str, int | str], make: Callable[[], Iterable[tuple[str, bytes]]]
) -> list[str]:
    """Make generated files once; verify them by hash, and make them again when one is missing, broken or out of date.

    Args:
        folder: Where the files live; created if absent. A manifest beside them holds recipe and SHA-256 of each file.
        recipe: Everything that decides the content: code version and parameters.
        make: Yields (relative POSIX path, content) of every file.
    Returns:
        The relative paths, sorted; other files in the folder are not among them.
    Raises:
        OSError: If the folder cannot be written (names DATASET.ROOT and the path).
    """
    hashes, reason = _read_manifest(folder, recipe)
    if reason:
        logger.info("Writing %s (%s)", folder, reason)
        hashes = _write_files(folder, recipe, make)
    return sorted(hashes)


def _write_files(
    folder: Path, recipe: Mapping[str, int | str], make: Callable[[], Iterable[tuple[str, bytes]]]
) -> dict[str, str]:
    hashes = {}
    try:
        for relative, content in make():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            hashes[relative] = hashlib.sha256(content).hexdigest()
        manifest = {"recipe": dict(recipe), "files": hashes}
        with replacing(folder / MANIFEST) as temporary:  # last: it vouches for all
            temporary.write_text(json.dumps(manifest, indent=0, sort_keys=True), "utf-8")
    except OSError as error:
        raise OSError(f"DATASET.ROOT: cannot write {folder}: {error}") from error
    return hashes


def _read_manifest(folder: Path, recipe: Mapping[str, int | str]) -> tuple[dict[str, str], str]:
    """Hashes by relative path, and why the files have to be made again ("" if all are as the manifest says)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        known, files = manifest["recipe"], dict(manifest["files"])
    except FileNotFoundError:
        return {}, "first use"
    except (OSError, ValueError, KeyError, TypeError):
        return {}, f"{MANIFEST} is unreadable"
    if known != dict(recipe):
        return {}, f"made by another recipe: {known}"
    for relative, expected in files.items():
        path = folder / relative
        if not path.is_file():
            return {}, f"{relative} is missing"
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return {}, f"{relative} is broken"
    return files, ""

"""The split file of Flickr_LDL and Twitter_LDL: MATLAB variables `imgname`, `train_ind` and `test_ind`.

Its votes are not read: their columns have no names, and public copies of the file use three different orders.
"""

from pathlib import Path
from typing import Any

import numpy as np

OLD_FORM = b"MATLAB 5.0"  # how the file starts; 7.3 is HDF5


def read_mat_split(file: Path) -> dict[str, list[str]]:
    """Read split 1, the first of several.

    Returns:
        Image names of `train` and `test`.
    Raises:
        ImportError: If the file is HDF5 and h5py is not installed.
        ValueError: If it is no such file (names file, variable and shapes).
    """
    with file.open("rb") as stream:
        old = stream.read(len(OLD_FORM)) == OLD_FORM
    try:
        names, flags = _read_old(file) if old else _read_hdf5(file)
    except (KeyError, OSError, NotImplementedError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no split file with imgname, train_ind and test_ind: {error}") from error
    parts = {part: _first_split(file, part, values, len(names)) for part, values in flags.items()}
    both = int((parts["train"] & parts["test"]).sum())
    if both:
        raise ValueError(f"{file}: {both} images are in train_ind and in test_ind")
    return {part: [name for name, chosen in zip(names, mask, strict=True) if chosen] for part, mask in parts.items()}


def _read_old(file: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    from scipy.io import loadmat  # comes with scikit-learn; needed for this file only

    content = loadmat(file, variable_names=["imgname", "train_ind", "test_ind"])
    names = [str(np.asarray(cell).ravel()[0]) for cell in content["imgname"].ravel()]
    return names, {part: content[f"{part}_ind"] for part in ("train", "test")}


def _read_hdf5(file: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    try:
        import h5py  # optional; needed for this file only
    except ImportError as error:
        raise ImportError(
            f"{file} needs h5py: pip install h5py (in the extra `data`), or set DATASET.SPLIT seeded to do without the file"
        ) from error
    with h5py.File(file, "r") as content:
        cells: Any = content["imgname"]
        names = ["".join(map(chr, content[cell][()].ravel())) for cell in cells[()].ravel()]
        return names, {part: content[f"{part}_ind"][()] for part in ("train", "test")}


def _first_split(file: Path, part: str, flags: np.ndarray, count: int) -> np.ndarray:
    """Whether each image is in the part, (count,), bool."""
    table = flags if flags.shape[0] == count else flags.T  # HDF5 turns MATLAB's axes round
    if table.ndim != 2 or table.shape[0] != count or not np.isin(table[:, 0], (0, 1)).all():
        raise ValueError(f"{file}: {part}_ind has shape {flags.shape}; expected a 0 or 1 for each of {count} images, per split")
    return table[:, 0].astype(bool)

"""The side file: what a detector found in each image, JSON Lines, one record per image, known by the image file's bytes.

A record: `sha256` of the image file, `file` (its name, for people), `width`, `height`, `boxes`, `scores`, `labels`, optional
`masks` (COCO's uncompressed run lengths), `backend`, `weights_sha256`, `settings`. Renaming or moving images changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_ext.file_hashes import FileHashes
from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Bools

logger = logging.getLogger(__name__)

# What decides a detector's boxes, hence what all records of a file share.
SETTINGS = ("frame", "conf", "iou", "imgsz", "max_boxes", "classes", "min_area", "bgsub_tau", "bgsub_frames", "reference")


@dataclass(frozen=True)
class Origin:
    """Where boxes come from; equal for all records of a file.

    Attributes:
        backend: Of the detector.
        weights_sha256: Of its weight file; "" = none.
        settings: That decide its boxes, by name.
    """

    backend: str
    weights_sha256: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, options: DetectorOptions, weights_sha256: str) -> Origin:
        """Describe a detector; settings are as JSON gives them back."""
        values = {name: getattr(options, name) for name in SETTINGS}
        return cls(options.backend, weights_sha256, json.loads(json.dumps(values)))


class BoxesFile:
    """Reads a side file.

    Args:
        path: Of the file. A last line that is cut off is passed over: a detection run may still be writing.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no record (names file and line).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.hashes = FileHashes()
        self._lines: dict[str, tuple[int, str]] = {}  # image hash -> line number, text; parsed when asked for
        self.origins: list[Origin] = []
        self._names: set[str] = set()
        for number, line in enumerate(_whole_lines(self.path), start=1):
            self._add(number, line)

    def _add(self, number: int, line: str) -> None:
        try:
            record = json.loads(line)
            key, origin = record["sha256"], Origin(record["backend"], record["weights_sha256"], record["settings"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path}, line {number} is no record of scripts/bgobj_detect.py: {error!r}") from error
        self._lines[key] = number, line
        self._names.add(record.get("file", ""))
        if origin not in self.origins:
            self.origins.append(origin)

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def images(self) -> set[str]:
        """SHA-256 of every image file with a record."""
        return set(self._lines)

    def find(self, image_path: str | os.PathLike) -> Detections | None:
        """Return what was found in the image file; None if it has no record.

        Raises:
            ValueError: If its record holds no boxes, or masks that do not fit (names file and line).
        """
        return self.get(self.hashes.of(image_path))

    def may_hold(self, image_path: str | os.PathLike) -> bool:
        """Whether there is a record of a file of this name, or else of these bytes; cheap if all names are known."""
        if Path(image_path).name in self._names:
            return True
        try:
            return self.hashes.of(image_path) in self._lines
        except OSError:  # whoever reads the split meets it as well, and decides
            return True

    def get(self, sha256: str) -> Detections | None:
        """Return what was found in the image file of that hash; None if it has no record. Errors as in `find`."""
        if sha256 not in self._lines:
            return None
        number, line = self._lines[sha256]
        return _parse(json.loads(line), f"{self.path}, line {number}")


class BoxesWriter:
    """Appends records to a side file, one whole line at a time; a file of an interrupted run is continued.

    Args:
        path: Of the file; made if missing.
        origin: Of all records to come.
    Raises:
        ValueError: If the file holds boxes of another origin (lists the differences).
    """

    def __init__(self, path: str | os.PathLike, origin: Origin) -> None:
        self.path, self.origin = Path(path), origin
        self.finished: set[str] = set()
        if self.path.exists():
            _cut_broken_end(self.path)
            known = BoxesFile(self.path)
            _check_origin(known, origin)
            self.finished = known.images
        self._stream = self.path.open("ab", buffering=0)

    def write(self, sha256: str, name: str, size: tuple[int, int], found: Detections) -> None:
        """Append the record of an image file.

        Args:
            sha256: Of the file.
            name: Of the file, without its folder.
            size: Width and height, pixels.
            found: In it.
        """
        record = {"sha256": sha256, "file": name, "width": size[0], "height": size[1]}
        record |= {"boxes": _short(found.boxes), "scores": _short(found.scores), "labels": list(found.labels)}
        if found.masks is not None:
            record["masks"] = [encode_mask(mask) for mask in found.masks]
        record |= {"backend": self.origin.backend, "weights_sha256": self.origin.weights_sha256}
        record["settings"] = self.origin.settings
        self._stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
        self.finished.add(sha256)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> BoxesWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def encode_mask(mask: Bools) -> dict[str, list[int]]:
    """Run lengths of a mask (h, w) as COCO writes them: down the columns, beginning with the number of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts if counts[-1] else counts[:-1]}


def decode_mask(code: Mapping[str, Any]) -> Bools:
    """Return the mask (h, w) of run lengths.

    Raises:
        ValueError: If they do not fill their size.
    """
    (height, width), counts = code["size"], np.asarray(code["counts"], dtype=np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"mask runs sum to {counts.sum()}; expected {height} x {width} = {height * width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape((height, width), order="F")


def _parse(record: Mapping[str, Any], source: str) -> Detections:
    boxes = from_boxes(record["boxes"], source).boxes
    scores, labels = np.asarray(record["scores"], dtype=np.float32).reshape(-1), [str(label) for label in record["labels"]]
    masks = None
    try:
        if "masks" in record:
            size = record["height"], record["width"]
            masks = np.array([_decode_sized(code, size) for code in record["masks"]], dtype=bool).reshape(-1, *size)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from error
    lengths = {"boxes": len(boxes), "scores": len(scores), "labels": len(labels)}
    lengths |= {} if masks is None else {"masks": len(masks)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source}: numbers differ: {', '.join(f'{count} {name}' for name, count in lengths.items())}")
    return Detections(boxes, scores, labels, masks)


def _decode_sized(code: Mapping[str, Any], size: tuple[int, int]) -> Bools:
    if tuple(code["size"]) != size:
        raise ValueError(f"a mask of size {code['size']}; expected {list(size)}, the image's height and width")
    return decode_mask(code)


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        logger.warning("%s: the last line is cut off and passed over", path)
    try:
        return [line.decode("utf-8") for line in lines[:-1]]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file in UTF-8: {error}") from error


def _cut_broken_end(path: Path) -> None:
    """Remove what follows the last line break: a record that an interrupted run did not finish."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s: removed %d bytes of an unfinished last record", path, len(content) - whole)
        os.truncate(path, whole)


def _check_origin(known: BoxesFile, origin: Origin) -> None:
    others = [each for each in known.origins if each != origin]
    if not others:
        return
    before, now = ({"backend": each.backend, "weights_sha256": each.weights_sha256} | dict(each.settings)
                   for each in (others[0], origin))  # fmt: skip
    differences = [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in now if before.get(key) != now.get(key)]
    raise ValueError(
        f"{known.path} holds boxes of another origin ({'; '.join(differences)}); expected the same settings, or another file"
    )


def _short(values: NDArray[np.float32]) -> list:
    """Floats with as many digits as float32 needs to come back bit by bit."""
    return np.vectorize(lambda value: float(f"{value:.9g}"), otypes=[float])(values).tolist() if values.size else []

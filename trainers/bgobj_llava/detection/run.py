"""Filling a side file: detect in many image files, each content once, and continue what was interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_ext.file_hashes import FileHashes
from trainers.bgobj_llava.detection.boxes_file import BoxesFile, BoxesWriter, Origin
from trainers.bgobj_llava.detection.detections import Detections, Detector, random_like
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import open_image


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """An image file and what is in it.

    Attributes:
        path: Of the file.
        sha256: Of its bytes.
        pixels: Upright RGB, (h, w, 3), uint8.
    """

    path: Path
    sha256: str
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


Look = Callable[[list[DecodedFile]], list[Detections]]


@dataclass
class DetectionCounts:
    """What a run over image files did.

    Attributes:
        written: Images with a new record.
        skipped: Images that had one.
        empty: New records without objects.
        boxes: In new records.
        failed: Path -> reason, of files without a record.
    """

    written: int = 0
    skipped: int = 0
    empty: int = 0
    boxes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def look_with(detector: Detector) -> Look:
    """Let a detector find the objects."""
    return lambda files: detector.detect([file.pixels for file in files])


def look_at_random(true_boxes: BoxesFile) -> Look:
    """Put rectangles of the true boxes' sizes at places that depend on the image file's bytes alone.

    The function that comes back raises ValueError for an image without a record.
    """

    def look(files: list[DecodedFile]) -> list[Detections]:
        rngs = [np.random.default_rng(int(file.sha256[:16], 16)) for file in files]
        return [random_like(_get(true_boxes, file), file.size, rng) for file, rng in zip(files, rngs, strict=True)]

    return look


def write_boxes(
    paths: Iterable[str | os.PathLike],
    look: Look,
    output: str | os.PathLike,
    *,
    options: DetectorOptions,
    weights_sha256: str = "",
    batch: int = 8,
) -> DetectionCounts:
    """Detect in image files and append to the side file; images that have a record are passed over.

    Args:
        paths: Image files; their order matters to background subtraction only.
        look: Finds the objects of a few files.
        output: The side file; made if missing.
        options: Recorded with the boxes, as is `weights_sha256`.
        batch: Files per call of `look`.
    Raises:
        ValueError: If the file holds boxes of other settings, or an image has no true boxes to copy the sizes of.
    """
    counts = DetectionCounts()
    with BoxesWriter(output, Origin.of(options, weights_sha256)) as writer:
        for files in _chunks(_unfinished(paths, writer.finished, counts), batch):
            for file, found in zip(files, look(files), strict=True):
                writer.write(file.sha256, file.path.name, file.size, found)
                counts.written += 1
                counts.empty += not len(found)
                counts.boxes += len(found)
    return counts


def _get(true_boxes: BoxesFile, file: DecodedFile) -> Detections:
    found = true_boxes.get(file.sha256)
    if found is None:
        raise ValueError(f"{file.path} has no record in {true_boxes.path}, whose boxes give the sizes of the random ones")
    return found


def _unfinished(paths: Iterable[str | os.PathLike], finished: set[str], counts: DetectionCounts) -> Iterator[DecodedFile]:
    """Yield each image content once that has no record yet."""
    seen, hashes = set(finished), FileHashes()
    for path in map(Path, paths):
        try:
            sha256 = hashes.of(path)
            if sha256 in seen:
                counts.skipped += 1
                continue
            pixels = np.array(open_image(path))
        except (ValueError, OSError) as error:
            counts.failed[path.as_posix()] = str(error)
            continue
        seen.add(sha256)
        yield DecodedFile(path, sha256, pixels)


def _chunks(files: Iterator[DecodedFile], size: int) -> Iterator[list[DecodedFile]]:
    chunk: list[DecodedFile] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk

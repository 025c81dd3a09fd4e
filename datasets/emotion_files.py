"""Finding and joining the published files of emotion data sets."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.image_files import list_folders, list_images, some, visible
from datasets.vote_tables import emotion_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One image and what its set says about it.

    Attributes:
        name: POSIX path relative to the data set's folder.
        emotion: Class name that folder or file give; "" if there are only votes.
        votes: In class order, not normalised; () if there are none.
    """

    name: str
    emotion: str = ""
    votes: tuple[float, ...] = ()


def find_entry(folder: Path, name: str) -> Path | None:
    """The entry of that relative POSIX name; its exact spelling wins, else any case does."""
    for part in name.split("/"):
        exact = folder / part
        if not exact.exists():
            candidates = visible(folder) if folder.is_dir() else []
            exact = next((path for path in candidates if path.name.casefold() == part.casefold()), exact)
        folder = exact
    return folder if folder.exists() else None


def list_class_folders(images: Path, classes: Sequence[str], relative_to: Path) -> list[Picture]:
    """The images below folders named like the classes, whatever their case.

    Raises:
        ValueError: If images lie in a folder that no class is named after (names folders and classes).
    """
    found = {folder: list_images(folder)[0] for folder in list_folders(images)}
    unknown = [folder.name for folder, files in found.items() if files and emotion_name(folder.name) not in classes]
    if unknown:
        raise ValueError(f"{images} has folders of no class: {some(unknown, ', ')}; expected {', '.join(classes)}")
    prefixes = {folder: folder.relative_to(relative_to).as_posix() for folder in found}  # once per folder: sets are large
    return [
        Picture(f"{prefixes[folder]}/{file.name}", emotion_name(folder.name))
        for folder, files in found.items()
        for file in files
    ]


def join_votes(
    files: Mapping[str, Picture], votes: Mapping[str, tuple[float, ...]], source: Path, *, skip_absent: bool
) -> list[Picture]:
    """Give every image its row of votes.

    Args:
        files: Image name as `source` has it -> picture.
        votes: Image name -> votes.
        source: The file the votes come from.
        skip_absent: DATASET.SKIP_BROKEN.
    Returns:
        All pictures of `files`; those without a row have no votes, and are listed in the log.
    Raises:
        FileNotFoundError: If rows name absent images; with `skip_absent` they are dropped and listed instead.
    """
    row_of = {name.casefold(): row for name, row in votes.items()}
    known = {name.casefold() for name in files}
    report_absent([name for name in votes if name.casefold() not in known], source, skip=skip_absent)
    rowless = [name for name in files if name.casefold() not in row_of]
    if rowless:
        logger.warning("%d of %d images have no row in %s: %s", len(rowless), len(files), source, some(rowless))
    return [Picture(picture.name, picture.emotion, row_of.get(name.casefold(), ())) for name, picture in files.items()]


def report_absent(names: Sequence[str], source: Path | str, *, skip: bool) -> None:
    """Stop on images that a file names and that do not exist, or list them in the log if they may be skipped."""
    if not names:
        return
    message = f"{source} names {len(names)} absent image(s): {some(names)}"
    if not skip:
        raise FileNotFoundError(f"{message}. DATASET.SKIP_BROKEN True drops them")
    logger.warning("Dropped: %s", message)

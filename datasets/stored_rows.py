"""Choices that are made once: drawn rows kept as JSON beside the data, with a hash or list of what they were drawn from."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from yacs.config import CfgNode

from clip_ext.files import replacing

logger = logging.getLogger(__name__)

INPUTS = "inputs"  # key of a stored choice: what it was made from
T = TypeVar("T")


def stored_rows(
    folder: Path,
    cfg: CfgNode,
    name: str,
    inputs: Mapping[str, object],
    make: Callable[[], Mapping[str, Sequence[object]]],
    read: Callable[[Mapping[str, Sequence[object]]], T],
) -> T:
    """Make a choice once: reuse the stored one as long as its inputs are the same.

    It is stored as `<name>.json` in `folder`, or in OUTPUT_DIR if that cannot be written.

    Args:
        folder: The data set's folder.
        cfg: Read for OUTPUT_DIR.
        name: Stem of the file.
        inputs: Everything that decides the result, as JSON knows it.
        make: Computes part -> rows.
        read: Turns part -> rows into the result; KeyError, TypeError or ValueError of a stored one has it made anew.
    """
    places = [folder / f"{name}.json"] + ([Path(cfg.OUTPUT_DIR) / f"{name}.json"] if cfg.OUTPUT_DIR else [])
    for path in places:
        found = _read_stored(path, inputs, read)
        if found is not None:
            logger.info("Split %s: reused", path)
            return found
    rows = make()
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {INPUTS: inputs, **rows})
        except OSError as error:
            logger.info("Split not stored there: %s", error)
        else:
            logger.info("Split %s: made and stored", path)
            break
    return read(rows)


def _read_stored(path: Path, inputs: Mapping[str, object], read: Callable[[Mapping[str, Sequence[object]]], T]) -> T | None:
    """The stored result, or None if there is none that belongs to these inputs."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored.pop(INPUTS) != inputs:
            logger.info("Split %s: its inputs have changed, it is made anew", path)
            return None
        return read(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("Split %s is unreadable, it is made anew", path)
        return None


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=0, ensure_ascii=False), "utf-8")

"""Writing folders whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` to fill; it takes the place of `path` when the block ends well.

    A failure leaves the old folder. A crash between the two renames leaves it under another name, where `present_folder`
    finds it.

    Args:
        path: The folder to write; those above it are made.
    Raises:
        OSError: If writing fails, for example on a full disk (names the path).
    """
    new, old = path.with_name(f".{path.name}.{os.getpid()}.part"), _old_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path, old)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OSError(f"cannot write {path.absolute()}: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def present_folder(path: Path) -> Path:
    """Return where the content of a folder written by `replacing_folder` lies now; `path` itself if there is none."""
    old = _old_name(path)
    return old if old.is_dir() and not path.exists() else path


def _clear(path: Path, old: Path) -> None:
    """Undo what a crash left."""
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")

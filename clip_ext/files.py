"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    A reader, a second process or a crash never meets half a file, and a failure leaves the old one.

    Args:
        path: The file to write; its folder exists.
    Raises:
        OSError: If writing fails, for example on a full disk (names the path).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path.absolute()}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)

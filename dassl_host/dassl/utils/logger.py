"""Copy of the console output in a log file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Logger", "setup_logger"]


class Logger:
    """A text stream that writes to the console and to a file.

    Whatever else a stream offers (`isatty`, `fileno`, `encoding`) is the console's, so that libraries which look at
    stdout see a real one; the console is never closed.

    Args:
        fpath: File to create, UTF-8; None writes to the console only.
    """

    def __init__(self, fpath: str | None = None) -> None:
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            Path(fpath).parent.mkdir(parents=True, exist_ok=True)
            # Line by line, so that the log of a killed run is complete.
            self.file = open(fpath, "w", encoding="utf-8", buffering=1)

    def __getattr__(self, name: str) -> Any:
        if name in ("console", "file"):  # not set yet: delegating would recurse
            raise AttributeError(name)
        return getattr(self.console, name)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("file") is not None:
            self.close()

    def write(self, msg: str) -> int:
        """Write `msg` to both and return its length."""
        self.console.write(msg)
        if self.file is not None:
            self.file.write(msg)
        return len(msg)

    def flush(self) -> None:
        """Flush both."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays open and usable through this object."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | None = None) -> None:
    """Copy stdout to a log file from now on.

    Args:
        output: A path ending in .txt or .log is the file; any other path is a folder that gets `log.txt`. An existing
            file is kept: the new name ends in the date and time. None changes nothing.
    """
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    if path.exists():
        path = path.with_name(path.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
    sys.stdout = Logger(str(path))

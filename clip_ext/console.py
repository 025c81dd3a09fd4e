"""Text for people, on consoles of any encoding."""

from __future__ import annotations

import sys


def accept_any_text() -> None:
    """Let stdout show what its encoding lacks as `\\u2603`, as stderr does anyway.

    Class names and paths are the user's. On a console or a pipe of another encoding than UTF-8 (cp1252 on Windows), a single
    letter of theirs would otherwise end a run. For entry points: a library leaves stdout alone.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")

"""What a continued run may not change beside its settings: weights, data, stores. Every difference in one message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT = 12  # characters of a hash in a message


def check_identity(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what a run was with what is configured now.

    Args:
        stored: Name of a thing -> what it was, plain values.
        now: The same of the run that is to go on.
    Raises:
        ValueError: If they differ (lists every difference).
    """
    differing = [
        f"{key}: the run has {_short(stored.get(key))}, now {_short(now.get(key))}"
        for key in sorted({*stored, *now})
        if stored.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError("\n  ".join([f"cannot continue the run, {len(differing)} thing(s) differ:", *differing]))


def _short(value: Any) -> str:
    return f"{value[:SHORT]}..." if isinstance(value, str) and len(value) >= 64 else repr(value)

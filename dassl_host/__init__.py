"""Find or provide the `dassl` package.

Dassl (https://github.com/KaiyangZhou/Dassl.pytorch) is not on PyPI, so this folder carries an engine with the same public API,
written from that API. An installed upstream Dassl is kept unless the environment variable `DASSL_HOST` says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

HOST_FOLDER = Path(__file__).resolve().parent
CHOICES = ("auto", "bundled", "upstream")
_INSTALL_HINT = (
    "install it with `pip install -e . --no-build-isolation` in its checkout (Python <= 3.12), "
    "or put the checkout on PYTHONPATH (Python 3.13 and newer)"
)


@dataclass(frozen=True)
class Engine:
    """The `dassl` in use: side is `bundled` or `upstream`, path is its package folder."""

    side: str
    version: str
    path: str


def ensure_dassl() -> Engine:
    """Make `import dassl` work and report which engine it yields.

    The environment variable `DASSL_HOST` chooses: `auto` (default) keeps a `dassl` that is imported or can be found and falls
    back to the bundled one, `bundled` and `upstream` force a side. Calling it again changes nothing.

    Raises:
        ValueError: If `DASSL_HOST` is none of the three.
        ImportError: If `upstream` is asked for and cannot be found.
        RuntimeError: If the other side has been imported already.
    """
    choice = os.environ.get("DASSL_HOST", "auto")
    if choice not in CHOICES:
        raise ValueError(f"DASSL_HOST is {choice!r}; expected one of {', '.join(CHOICES)}")
    if "dassl" not in sys.modules:
        _prepare_path(choice)
    engine = _imported_engine()
    if choice not in ("auto", engine.side):
        raise RuntimeError(
            f"DASSL_HOST={choice}, but the {engine.side} dassl is already imported from {engine.path}; "
            "set DASSL_HOST before anything imports dassl"
        )
    if engine.side == "upstream":
        _import_upstream_guarded()
    return engine


def _prepare_path(choice: str) -> None:
    """Arrange `sys.path` so that importing `dassl` yields the chosen side."""
    if choice == "bundled":
        sys.path[:] = [str(HOST_FOLDER), *_other_entries()]
    elif choice == "upstream":
        kept, sys.path[:] = list(sys.path), _other_entries()
        if not _is_findable():
            sys.path[:] = kept
            raise ImportError(f"DASSL_HOST=upstream, but no upstream dassl can be found; {_INSTALL_HINT}", name="dassl")
    elif not _is_findable():
        sys.path.append(str(HOST_FOLDER))


def _other_entries() -> list[str]:
    return [entry for entry in sys.path if not entry or Path(entry).resolve() != HOST_FOLDER]


def _is_findable() -> bool:
    """True if a regular package `dassl` can be imported; a bare folder of that name is not one."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("dassl")
    return spec is not None and spec.origin is not None


def _imported_engine() -> Engine:
    package = importlib.import_module("dassl")
    side = "bundled" if getattr(package, "__bundled__", False) else "upstream"
    return Engine(side=side, version=package.__version__, path=str(Path(package.__file__).resolve().parent))


def _import_upstream_guarded() -> None:
    """Import upstream's engine without its two side effects: the need for `wilds`, and logging switched off."""
    if "dassl.engine" in sys.modules:
        return
    if "wilds" not in sys.modules and importlib.util.find_spec("wilds") is None:
        sys.modules["wilds"] = _wilds_stub()
    disabled_level = logging.root.manager.disable
    try:
        importlib.import_module("dassl.engine")
    finally:
        logging.disable(disabled_level)


def _wilds_stub() -> types.ModuleType:
    """Return a stand-in for the `wilds` package that complains when it is used, not when it is imported."""
    stub = types.ModuleType("wilds", "Stand-in: the optional package `wilds` is not installed.")
    stub.__spec__ = importlib.machinery.ModuleSpec("wilds", loader=None)
    stub.get_dataset = _missing_wilds
    return stub


def _missing_wilds(*args: object, **kwargs: object) -> None:
    raise ImportError("this data set needs the package `wilds`: pip install wilds", name="wilds")

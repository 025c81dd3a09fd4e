"""Find or provide the `dassl` package.

Dassl (https://github.com/KaiyangZhou/Dassl.pytorch) is not on PyPI, so this folder carries an engine with the same
public API, written from that API. An installed upstream Dassl is kept unless the environment variable `DASSL_HOST`
says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOST_FOLDER = Path(__file__).resolve().parent
CHOICES = ("auto", "bundled", "upstream")
_UPSTREAM_OPTIONAL = ("wilds", "pandas")  # imported by upstream's WILDS data sets, with every other module
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

    The environment variable `DASSL_HOST` chooses: `auto` (default) keeps a `dassl` that is imported or can be found and
    falls back to the bundled one, `bundled` and `upstream` force a side. Calling it again changes nothing.

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
    """Import upstream's engine; packages of single data sets may be missing, and logging stays switched on."""
    if "dassl.engine" in sys.modules:
        return
    missing = [name for name in _UPSTREAM_OPTIONAL if name not in sys.modules and not importlib.util.find_spec(name)]
    disabled_level = logging.root.manager.disable
    sys.modules.update({name: _stand_in(name) for name in missing})
    try:
        importlib.import_module("dassl.engine")
    finally:
        logging.disable(disabled_level)
        # Upstream's modules keep theirs; everyone else must go on seeing that the package is not there.
        for name in missing:
            del sys.modules[name]


def _stand_in(package: str) -> types.ModuleType:
    """Return a module whose members complain when they are used, not when they are imported."""

    def member(name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def use(*args: object, **kwargs: object) -> None:
            raise ImportError(f"{package}.{name} is used here; pip install {package}", name=package)

        return use

    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, loader=None)  # `find_spec` insists on one
    module.__getattr__ = member
    return module

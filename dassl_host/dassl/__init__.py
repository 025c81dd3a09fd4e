"""API-compatible engine for Dassl 0.6.3 trainers, written from Dassl's public API (see NOTICE)."""

import importlib.util
import sys
from pathlib import Path

if __name__ != "dassl":
    # A second copy of the package would build a second set of registries.
    raise ImportError(f"import this package as `dassl`, not as `{__name__}`; call `dassl_host.ensure_dassl()` first")

# A script or a loader worker may have been given this folder alone; the engine also needs `dassl_host` by its name.
if importlib.util.find_spec("dassl_host") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

__version__ = "0.6.3"
__bundled__ = True

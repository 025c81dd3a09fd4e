"""Run a script with `dassl` ensured: `python -m dassl_host SCRIPT ARGS...`.

Without a script, print the folder that holds the bundled `dassl`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from dassl_host import HOST_FOLDER, ensure_dassl


def main() -> None:
    """Run the script named on the command line as `__main__`, or print the folder that holds `dassl`."""
    if len(sys.argv) < 2:
        print(HOST_FOLDER)
        return
    script = Path(sys.argv[1])
    if not script.is_file():
        raise SystemExit(f"python -m dassl_host: no script at {script}")
    del sys.argv[0]
    # As `python SCRIPT` would: the script's own `trainers`, `datasets` and `clip` win over ours.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.path.insert(0, str(script.resolve().parent))
    ensure_dassl()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

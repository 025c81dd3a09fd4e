"""Installs this checkout, with extras, into the interpreter that runs it; does nothing when that is already done.

Called by env.sh and env.bat. A stamp in the environment remembers what was installed, so later runs start at once and need
no network. Usage: python scripts/install.py EXTRAS
"""
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def wanted_stamp(extras: str) -> str:
    """Everything that makes an earlier installation stale: the requirements, the extras, the place of the checkout."""
    return f"{hashlib.sha256((ROOT / 'setup.py').read_bytes()).hexdigest()} [{extras}] {ROOT}\n"


def install(extras: str) -> int:
    stamp, wanted = Path(sys.prefix) / ".installed", wanted_stamp(extras)
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return 0
    print(f"Installing the package into {sys.prefix} (again only when setup.py changes)", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-e", f".[{extras}]"]
    code = subprocess.run(pip, cwd=ROOT).returncode
    if code == 0:
        stamp.write_text(wanted, "utf-8")
    return code


if __name__ == "__main__":
    if sys.prefix == sys.base_prefix:
        sys.exit(f"{sys.executable} is no virtual environment; use scripts/env.sh or scripts/env.bat")
    sys.exit(install(sys.argv[1] if len(sys.argv) > 1 else "all"))

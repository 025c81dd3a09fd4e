# Sourced, not run: sets ROOT to the checkout and defines prepare_env, which makes .venv there and installs this package.
# PYTHON names the interpreter that makes the environment (default python3).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Prints the path of the environment's interpreter, if there is one (Git Bash on Windows has the second layout).
venv_python() {
  local candidate
  for candidate in "$ROOT/.venv/bin/python" "$ROOT/.venv/Scripts/python.exe"; do
    if [ -x "$candidate" ]; then printf '%s\n' "$candidate"; return; fi
  done
}

make_venv() {
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "PYTHON is '$python'; Python 3.10 or newer is needed, for example: PYTHON=python3.12 bash $0" >&2
    return 1
  fi
  echo "Making $ROOT/.venv"
  "$python" -m venv "$ROOT/.venv"
}

# prepare_env [EXTRAS]: leaves the environment's interpreter in VENV_PYTHON, with `.[EXTRAS]` (default: all) installed.
prepare_env() {
  VENV_PYTHON="$(venv_python)"
  if [ -z "$VENV_PYTHON" ] || ! "$VENV_PYTHON" -c 'import pip' 2>/dev/null; then
    make_venv || return 1
    VENV_PYTHON="$(venv_python)"
  fi
  "$VENV_PYTHON" "$ROOT/scripts/install.py" "${1:-all}"
}

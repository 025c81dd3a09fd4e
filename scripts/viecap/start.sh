# Sourced, not run: defines start, which runs a program of the checkout. PYTHON is the interpreter when there is no .venv.

source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# start PROGRAM [WORDS ...]: PROGRAM below the checkout.
start() {
  local python program="$1"
  shift
  python="$(venv_python)"
  exec "${python:-${PYTHON:-python3}}" "$ROOT/$program" "$@"
}

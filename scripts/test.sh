#!/usr/bin/env bash
# Runs the test suite in its own environment, from any folder. Usage: bash scripts/test.sh [pytest arguments]
# WORKERS is the number of processes (default 2; each needs about 2 GB of memory); 0 runs the tests in this one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_env all
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # tiny models: a second thread costs more than it gives
exec "$VENV_PYTHON" -m pytest -q -n "${WORKERS:-2}" --dist loadfile tests "$@"

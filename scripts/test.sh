#!/usr/bin/env bash
# Runs the test suite in its own environment, from any folder. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_env all
cd "$ROOT"
exec "$VENV_PYTHON" -m pytest -q tests "$@"

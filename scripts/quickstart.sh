#!/usr/bin/env bash
# The main job from a fresh clone: installs the package into .venv, then learns handwriting without a label.
# Usage: bash scripts/quickstart.sh [--seeds 1 2 3] [--output DIR]   No network is needed once the packages are there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_env all
exec "$VENV_PYTHON" "$ROOT/scripts/quickstart.py" "$@"

#!/usr/bin/env bash
# One run, or base-to-new, in its place below output; skips what is finished, continues what is not.
# Usage: bash scripts/run.sh DATASET TRAINER CFG SEED [SHOTS [base2new]] [KEY VALUE ...]   DATA is the data root (default: data).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python="$(venv_python)"
exec "${python:-${PYTHON:-python3}}" "$ROOT/scripts/run.py" "$@"

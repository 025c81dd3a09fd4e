#!/usr/bin/env bash
# Captions one picture.
# Usage: bash scripts/viecap/infer_by_instance.sh --image_path FILE --weight_path RUN_OR_WEIGHTS [FLAGS] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
start scripts/viecap_run.py infer "$@"

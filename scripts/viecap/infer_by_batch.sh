#!/usr/bin/env bash
# Captions a folder of pictures.
# Usage: bash scripts/viecap/infer_by_batch.sh --image_path FOLDER --weight_path RUN_OR_WEIGHTS [FLAGS] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
start scripts/viecap_run.py infer "$@"
